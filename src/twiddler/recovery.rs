//! Recovery: queries the daemon, compares its state with the registry, and applies the reconciliation.
//!
//! It runs after a start of the proxy, after a restart of the daemon, and after an interrupted change. An
//! interrupted recovery starts again from the beginning, because it is idempotent.

use std::collections::BTreeSet;

use super::engine::{Engine, Interrupted};
use super::model::answers::{Answers, Query};
use super::model::change::ChangeError;
use super::model::reconcile::{self, Inputs, Mode, Reconciliation, reconcile};
use super::model::script::{ADD, Call};
use super::model::view::Status;
use crate::audit::reason;
use crate::daemon::ReloadResult;
use crate::fault::{CANT_REREAD, SHUTDOWN_STATE};
use crate::persist::{self, Contents, real_groups};
use crate::program;
use crate::registry::losses::{self, Cause};
use crate::registry::{Event, Registry, without_defined};

/// Makes the view current, if it is not.
///
/// # Errors
/// When the daemon does not answer, or recovery fails.
pub(super) async fn recover(engine: &mut Engine) -> Result<(), ChangeError> {
    if engine.status() != Status::Unknown && engine.liveness.is_unbroken() {
        return Ok(());
    }
    engine.set_status(Status::Unknown);
    // The liveness connection comes first, so that all later answers belong to the epoch that it watches.
    engine.watch().await?;
    let recovered = recover_view(engine).await;
    match recovered {
        Ok(status) => {
            engine.set_status(status);
            Ok(())
        }
        Err(error) => {
            engine.set_status(Status::Unknown);
            engine.liveness.forget();
            Err(error)
        }
    }
}

/// Adds the groups and processes that an earlier recovery could not add. The worker calls it before each
/// change.
///
/// # Errors
/// When they still cannot be added.
pub(super) async fn catch_up(engine: &mut Engine) -> Result<(), ChangeError> {
    if engine.status() != Status::Behind {
        return Ok(());
    }
    if engine.journal.intent().is_empty() {
        apply_reconciliation(engine, Mode::NewEpochPersistent).await?;
        engine.mark().await?;
    } else {
        close_open_intent(engine).await?;
    }
    engine.set_status(Status::Current);
    Ok(())
}

/// Checks whether groups or processes were removed without this proxy. Logs them by name, and removes them
/// from the registry.
///
/// # Errors
/// When the daemon does not answer.
pub(super) async fn check_for_losses(engine: &mut Engine) -> Result<(), ChangeError> {
    let is_settled = engine.status() == Status::Current && engine.journal.intent().is_empty();
    if !is_settled || engine.with_registry(Registry::is_empty) {
        return Ok(());
    }
    let (mut answers, mut reconciliation) = query_and_reconcile(engine, Mode::SameEpoch).await?;
    engine.confirm_epoch().await?;
    if std::mem::take(&mut engine.was_withheld) && !reconciliation.events.is_empty() {
        add_withheld(engine).await?;
        (answers, reconciliation) = query_and_reconcile(engine, Mode::SameEpoch).await?;
        engine.confirm_epoch().await?;
    }
    if !reconciliation.events.is_empty() {
        engine.log_losses(&reconciliation.events, Cause::Removed);
        engine.note(reconciliation.events);
        engine.write_persist_file();
    }
    engine.foreign_groups =
        engine.with_registry(|registry| reconcile::foreign_groups(registry, &answers));
    let marker_is_missing = engine.with_registry(|registry| {
        registry
            .marker()
            .is_some_and(|name| !answers.is_active(name))
    });
    match engine.with_registry(Registry::has_no_entries) {
        _ if !marker_is_missing => Ok(()),
        true => {
            clear_registry(engine);
            Ok(())
        }
        false => engine.mark_if_possible().await,
    }
}

/// A `supervisorctl update` directly on the daemon, while the persist file was withheld, removes the groups
/// of that file. This adds them again.
async fn add_withheld(engine: &mut Engine) -> Result<(), ChangeError> {
    let reloaded = engine.call("supervisor.reloadConfig").await?;
    let reloaded = ReloadResult::read(&reloaded);
    let mut missing = engine.with_registry(real_groups);
    missing.retain(|name| reloaded.added.contains(name));
    if missing.is_empty() {
        return Ok(());
    }
    tracing::warn!(groups = ?missing, "adding again what was removed straight on supervisord just when the persist file was withheld for a change: remove it through twiddler if it is to go");
    add_groups(engine, &missing).await
}

async fn recover_view(engine: &mut Engine) -> Result<Status, ChangeError> {
    let is_first = !engine.has_adopted();
    let mode = mode(engine, is_first).await?;
    let is_new = mode != Mode::SameEpoch;
    if is_new {
        engine.begin_epoch();
    }
    let mut status = Status::Current;
    match mode {
        Mode::NewEpoch => begin_new_epoch(engine, is_first).await?,
        Mode::NewEpochPersisted | Mode::NewEpochPersistent => {
            warn_of_defined(engine);
            if is_first {
                // The daemon may not have restarted: a client may have removed the marker.
                tracing::info!(
                    "adopting the groups and processes of the persist file that supervisord has"
                )
            } else {
                tracing::info!("supervisord was started again with what was kept")
            }
            status = recover_persisted(engine, mode).await?;
        }
        _ => {}
    }
    if !engine.journal.intent().is_empty() {
        status = match close_open_intent(engine).await {
            Ok(()) => status,
            Err(error) if is_about_files(&error) => Status::Behind,
            Err(error) => return Err(error),
        };
        engine.write_persist_file();
    }
    if is_first {
        adopt(engine).await?;
        engine.set_adopted();
        engine.write_persist_file();
    }
    if is_first || is_new {
        let configured = engine.configured();
        engine.with_registry(|registry| losses::warn_of_clashes(registry, &configured));
    }
    Ok(status)
}

/// Determines whether the daemon is in a new epoch, and whether it has read the persist file.
async fn mode(engine: &mut Engine, is_first: bool) -> Result<Mode, ChangeError> {
    // The user may have switched `--persist` off after the daemon read the persist file, or on after it
    // started without one.
    let has_persist_file = if is_first {
        engine.persist_file_at_start.is_some()
    } else {
        engine.persists()
    };
    let is_same_epoch = if engine.with_registry(Registry::is_empty) {
        // No group tells this epoch from the next. With an open intent, the epoch is taken for a new one.
        is_first || has_persist_file || engine.journal.intent().is_empty()
    } else {
        is_same_epoch(engine, has_persist_file).await?
    };
    Ok(match (is_same_epoch, has_persist_file, engine.persists()) {
        (true, ..) => Mode::SameEpoch,
        (false, false, _) => Mode::NewEpoch,
        (false, true, false) => Mode::NewEpochPersisted,
        (false, true, true) => Mode::NewEpochPersistent,
    })
}

/// Returns whether the daemon still has a group that shows that the epoch is the same.
async fn is_same_epoch(engine: &mut Engine, has_persist_file: bool) -> Result<bool, ChangeError> {
    let configured = engine.configured();
    let signs =
        engine.with_registry(|registry| reconcile::signs(registry, &configured, has_persist_file));
    let queries = signs.iter().cloned().map(Query::Group).collect();
    let answers = engine.query(queries).await?;
    if !signs.iter().any(|name| answers.is_active(name)) {
        return Ok(false);
    }
    let is_real = |name: &String| engine.with_registry(|registry| registry.owner(name).is_some());
    if has_persist_file
        || signs
            .iter()
            .any(|name| answers.is_active(name) && !is_real(name))
    {
        return Ok(true);
    }
    let losses =
        engine.with_registry(|registry| reconcile::lost_placed_members(registry, &answers));
    engine.log_losses(&losses, Cause::Unknown);
    engine.note(losses);
    if engine.journal.intent().is_empty() {
        engine.mark_if_possible().await?;
    }
    Ok(true)
}

/// Empties the registry for a new epoch. A restarted daemon has none of the proxy's groups, except those of
/// a generated file that was in place when it started: these are removed.
async fn begin_new_epoch(engine: &mut Engine, is_first: bool) -> Result<(), ChangeError> {
    let cause = if is_first {
        Cause::Unknown
    } else {
        Cause::Restarted
    };
    let removals = engine.with_registry(losses::removal_of_all);
    match removals.is_empty() {
        false => engine.log_losses(&removals, cause),
        true if !is_first => {
            tracing::info!("supervisord was started again: only its configuration files count now");
        }
        true => {}
    }
    // The daemon may have read a generated file of an earlier proxy's open intent. It has nothing else of
    // that proxy.
    if is_first && engine.journal.intent().is_empty() {
        clear_registry(engine);
        return Ok(());
    }
    let (_, reconciliation) = query_and_reconcile(engine, Mode::NewEpoch).await?;
    engine
        .remove(&without_recreated(&reconciliation), &BTreeSet::new())
        .await?;
    engine
        .remove(&reconciliation.recreate, &reconciliation.recreate)
        .await?;
    engine.replace(reconciliation.registry);
    Ok(())
}

/// Groups to remove for good. The user's own groups are recreated separately.
fn without_recreated(reconciliation: &Reconciliation) -> BTreeSet<String> {
    reconciliation
        .remove
        .difference(&reconciliation.recreate)
        .cloned()
        .collect()
}

/// Warns about added groups and processes that the user's files define now.
fn warn_of_defined(engine: &Engine) {
    let configured = engine.configured();
    let names = engine.with_registry(|registry| without_defined(registry, &configured).1);
    if !names.is_empty() {
        tracing::warn!(
            "{}: was added, and supervisord's files define it now: there is only theirs from now on",
            names.join(", ")
        );
    }
}

fn clear_registry(engine: &mut Engine) {
    let mut registry = engine.with_registry(Registry::clone);
    registry.clear();
    engine.replace(registry);
}

/// Handles a restart of the daemon after which it has read the persist file. Makes the daemon have exactly
/// the groups and processes that clients got replies about. The file may be older than the last change, or
/// somebody may have replaced it.
async fn recover_persisted(engine: &mut Engine, mode: Mode) -> Result<Status, ChangeError> {
    let intent = match mode {
        Mode::NewEpochPersisted => engine.journal.intent().to_vec(),
        _ => Vec::new(),
    };
    let status = match apply_reconciliation(engine, mode).await {
        Ok(()) => {
            if engine.journal.intent().is_empty() {
                engine.mark_if_possible().await?;
            }
            Status::Current
        }
        Err(error) if is_about_files(&error) => {
            tracing::error!(reason = %error, "supervisord lacks groups that it did not read when it started: they are added again before the next change");
            Status::Behind
        }
        Err(error) => return Err(error),
    };
    if !intent.is_empty() {
        // The persist file may contain steps of the open intent that were not executed.
        let _reopened = engine.intend(intent, false)?;
        close_open_intent(engine).await?;
    }
    Ok(status)
}

/// Applies the reconciliation to the daemon and the registry. Removes a member from the registry if the
/// daemon rejects its section.
async fn apply_reconciliation(engine: &mut Engine, mode: Mode) -> Result<(), ChangeError> {
    let (_, reconciliation) = query_and_reconcile(engine, mode).await?;
    // These processes were removed, and an older file has started them again.
    engine.stop(reconciliation.stop.iter()).await?;
    let mut registry = reconciliation.registry;
    let result = match mode {
        Mode::NewEpochPersistent => {
            engine
                .remove(&reconciliation.remove, &BTreeSet::new())
                .await?;
            restore_registry(engine, &mut registry).await
        }
        _ => Ok(()),
    };
    match &result {
        Err(error) if !is_about_files(error) => {}
        _ => engine.replace(registry),
    }
    result
}

/// Writes `registry` to the persist file, and adds the groups that the daemon lacks.
async fn restore_registry(engine: &mut Engine, registry: &mut Registry) -> Result<(), ChangeError> {
    // Each round drops one member.
    for _ in 0..=registry.members().count() {
        let written = engine.write_persist_file_of(registry);
        written.map_err(|error| engine.cannot_write(&error))?;
        match add_from_persist_file(engine, registry).await {
            Err(ChangeError::Fault(fault)) if fault.code == CANT_REREAD => {
                let event = persist::refused_member(registry, &fault.text).ok_or(fault.clone())?;
                tracing::error!(
                    fault = reason(&fault),
                    ?event,
                    "the process cannot be added again, and is forgotten"
                );
                registry.apply(event);
            }
            other => return other,
        }
    }
    Err(engine.not_read().await.into())
}

/// Lets the daemon read the persist file, and adds the groups that the daemon lacks or has in another form.
async fn add_from_persist_file(
    engine: &mut Engine,
    registry: &Registry,
) -> Result<(), ChangeError> {
    let reloaded = engine.call("supervisor.reloadConfig").await?;
    let reloaded = ReloadResult::read(&reloaded);
    let real_groups = real_groups(registry);
    // The number of a real group is unique, so a changed real group comes from an older persist file.
    let is_changed =
        |name: &String| reloaded.changed.contains(name) && registry.added_group(name).is_some();
    let changed: BTreeSet<String> = real_groups
        .iter()
        .filter(|name| is_changed(name))
        .cloned()
        .collect();
    let is_missing = |name: &String| reloaded.added.contains(name) || changed.contains(name);
    let missing: BTreeSet<String> = real_groups.into_iter().filter(is_missing).collect();
    if missing.is_empty() {
        return Ok(());
    }
    tracing::warn!(groups = ?missing, "adding groups that supervisord did not read when it started");
    engine.stop_and_remove(&changed).await?;
    add_groups(engine, &missing).await
}

/// Adds groups as the daemon has read them. Logs each group that it refuses.
async fn add_groups(engine: &mut Engine, groups: &BTreeSet<String>) -> Result<(), ChangeError> {
    let add = |name: &String| -> Call { (ADD, vec![name.as_str().into()]) };
    let calls: Vec<Call> = groups.iter().map(add).collect();
    for (group, added) in groups.iter().zip(engine.multicall(&calls).await?) {
        if let Err(fault) = added {
            tracing::error!(
                group,
                fault = reason(&fault),
                "the group cannot be added again"
            );
        }
    }
    Ok(())
}

/// Closes the open intent with the steps that the daemon has executed.
///
/// # Errors
/// When groups that the change removed cannot be added again yet. The intent stays open then.
async fn close_open_intent(engine: &mut Engine) -> Result<(), ChangeError> {
    let (_, reconciliation) = query_and_reconcile(engine, Mode::SameEpoch).await?;
    if !reconciliation.events.is_empty() {
        tracing::info!(
            steps = reconciliation.events.len(),
            "supervisord has executed steps of a change that twiddler did not finish"
        );
    }
    if let Err(error) = restore_groups(engine, &reconciliation.restore).await {
        tracing::error!(reason = %error, groups = ?reconciliation.restore, "groups were lost in an interrupted change, and cannot be added again yet");
        engine.note(reconciliation.events);
        return Err(error);
    }
    engine.close_intent(reconciliation.events);
    Ok(())
}

async fn restore_groups(engine: &mut Engine, groups: &[(String, i64)]) -> Result<(), ChangeError> {
    if groups.is_empty() {
        return Ok(());
    }
    let text: String = groups
        .iter()
        .map(|(name, priority)| program::render_group(name, *priority, &[]))
        .collect();
    let names: Vec<String> = groups.iter().map(|(name, _)| name.clone()).collect();
    tracing::warn!(groups = ?names, "adding groups again that were lost in an interrupted change");
    engine.add_read(&text, &names).await
}

/// Adopts the generated groups of the daemon that the journal does not have.
async fn adopt(engine: &mut Engine) -> Result<(), ChangeError> {
    let (_, reconciliation) = query_and_reconcile(engine, Mode::FirstStart).await?;
    let joined = |event: &&Event| matches!(event, Event::Joined(_));
    let is_number = |event: &Event| matches!(event, Event::Next(_));
    let processes = match reconciliation.events.iter().filter(joined).count() {
        1 => "1 process".to_owned(),
        many => format!("{many} processes"),
    };
    if !reconciliation.events.iter().all(is_number) {
        tracing::warn!("recovered {processes} from supervisord that the journal does not have");
    }
    engine.note(reconciliation.events);
    Ok(())
}

/// Queries the daemon, and reconciles its answers with the registry.
async fn query_and_reconcile(
    engine: &mut Engine,
    mode: Mode,
) -> Result<(Answers, Reconciliation), Interrupted> {
    let intent = engine.journal.intent().to_vec();
    // Within one epoch, the user's files and the persist file do not matter.
    let (configured, persist_file) = match mode {
        Mode::SameEpoch => Default::default(),
        _ => (engine.configured(), persist_file_contents(engine, mode)),
    };
    let own = engine.own_groups();
    let registry = match mode {
        Mode::NewEpochPersisted | Mode::NewEpochPersistent => {
            engine.with_registry(|registry| without_defined(registry, &configured).0.into_owned())
        }
        _ => engine.with_registry(Registry::clone),
    };
    let inputs = Inputs {
        registry: &registry,
        intent: &intent,
        persist_file: &persist_file,
        configured: &configured,
        own: &own,
    };
    let answers = engine.query(reconcile::queries(inputs, mode)).await?;
    let reconciliation = reconcile(inputs, &answers, mode);
    Ok((answers, reconciliation))
}

/// The contents of the persist files that the daemon may have read: the one of this proxy's start, and the
/// present one.
fn persist_file_contents(engine: &Engine, mode: Mode) -> Contents {
    let at_start = engine.persist_file_at_start.as_deref().unwrap_or_default();
    let mut contents = Contents::read(at_start);
    if mode == Mode::NewEpochPersistent
        && let Some(text) = engine.persist.as_ref().and_then(|persist| persist.read())
    {
        contents.groups.extend(Contents::read(&text).groups);
    }
    contents
}

/// Returns whether the user's files or the disk caused the error, rather than the daemon's state.
fn is_about_files(error: &ChangeError) -> bool {
    error
        .fault()
        .is_some_and(|fault| fault.code != SHUTDOWN_STATE)
}
