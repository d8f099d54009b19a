//! Validates documents by `docs/output.schema.json`. It knows the parts of JSON Schema that this file uses.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

const TEXT: &str = include_str!("../../../docs/output.schema.json");

/// Fails unless each document in `text` is valid for the verb.
pub fn ensure_documents(verb: &str, text: &str) -> Result<()> {
    let schema: Value = serde_json::from_str(TEXT).context("docs/output.schema.json")?;
    let mut count = 0;
    for document in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let document = document.with_context(|| format!("{verb}: {text}"))?;
        check(&schema, &schema["$defs"][verb], &document)
            .with_context(|| format!("{verb}: {document}"))?;
        count += 1;
    }
    ensure!(count > 0, "{verb} has printed nothing");
    Ok(())
}

fn check(root: &Value, schema: &Value, value: &Value) -> Result<()> {
    let rules = schema
        .as_object()
        .with_context(|| format!("no schema: {schema}"))?;
    for (keyword, rule) in rules {
        match keyword.as_str() {
            "description" => {}
            "$ref" => {
                let pointer = rule.as_str().and_then(|text| text.strip_prefix('#'));
                let target = pointer.and_then(|pointer| root.pointer(pointer));
                check(root, target.with_context(|| format!("{rule}"))?, value)?;
            }
            "type" => ensure!(is_of(rule, value), "{value} is not of type {rule}"),
            "enum" => {
                let allowed = rule.as_array().context("enum")?;
                ensure!(allowed.contains(value), "{value} is none of {rule}");
            }
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    check(root, rule, item)?;
                }
            }
            "required" => {
                for name in rule.as_array().into_iter().flatten() {
                    let name = name.as_str().unwrap_or_default();
                    ensure!(value.get(name).is_some(), "{name} is missing in {value}");
                }
            }
            "properties" => {
                for (name, member) in value.as_object().into_iter().flatten() {
                    match rule.get(name) {
                        Some(rule) => check(root, rule, member).context(name.clone())?,
                        None => ensure!(
                            schema.get("additionalProperties").is_none(),
                            "nobody knows {name}"
                        ),
                    }
                }
            }
            "additionalProperties" => ensure!(*rule == Value::Bool(false), "{rule}"),
            other => bail!("the schema uses {other}, which nothing here checks"),
        }
    }
    Ok(())
}

fn is_of(kind: &Value, value: &Value) -> bool {
    match kind.as_str().unwrap_or_default() {
        "array" => value.is_array(),
        "object" => value.is_object(),
        "string" => value.is_string(),
        "integer" => value.is_i64(),
        "boolean" => value.is_boolean(),
        _ => false,
    }
}

#[test]
fn what_does_not_fit_is_noticed() {
    for (verb, text) in [
        ("groups", r#"["a", 1]"#),
        ("logs", r#"{"name": "a"}"#),
        ("logs", r#"{"name": "a", "line": "b", "more": 1}"#),
        ("add", "false"),
        ("status", r#"[{"name": "a"}]"#),
        ("groups", ""),
        ("nothing", "[]"),
    ] {
        assert!(ensure_documents(verb, text).is_err(), "{verb} {text}");
    }
    ensure_documents(
        "logs",
        "{\"name\": \"a\", \"line\": \"b\"}\n{\"name\": \"a\", \"line\": \"\"}",
    )
    .unwrap();
}
