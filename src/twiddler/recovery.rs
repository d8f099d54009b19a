//! Recovery: asks the daemon, reconciles what it has with what is known, and applies what follows.
//!
//! It runs after a start of the proxy, a restart of the daemon and a change that was cut short. What is
//! cut short itself is begun again, because reconciling finds nothing where nothing differs.

use std::collections::BTreeSet;

use super::engine::{Engine, Interrupted};
use super::model::answers::{Answers, Query};
use super::model::change::ChangeError;
use super::model::reconcile::{self, Known, Mode, Reconciliation, reconcile};
use super::model::script::{ADD, Call};
use super::model::view::Status;
use crate::audit::reason;
use crate::daemon::ReloadResult;
use crate::fault::{CANT_REREAD, SHUTDOWN_STATE};
use crate::persist::{self, Contents, real_groups};
use crate::program;
use crate::registry::losses::{self, Cause};
use crate::registry::without_defined;
use crate::registry::{Event, Registry};

/// Makes what is known current again, if it is not.
///
/// # Errors
/// Why the daemon cannot tell.
pub(super) async fn recover(engine: &mut Engine) -> Result<(), ChangeError> {
    if engine.status() != Status::Unknown && engine.link.is_unbroken() {
        return Ok(());
    }
    engine.set_status(Status::Unknown);
    // What is asked after this is about the epoch that is watched.
    engine.watch().await?;
    let recovered = take_stock(engine).await;
    match recovered {
        Ok(status) => {
            engine.set_status(status);
            Ok(())
        }
        Err(error) => {
            engine.set_status(Status::Unknown);
            engine.link.forget();
            Err(error)
        }
    }
}

/// Before a change: adds again what could not be added before.
///
/// # Errors
/// When that is still so.
pub(super) async fn catch_up(engine: &mut Engine) -> Result<(), ChangeError> {
    if engine.status() != Status::Behind {
        return Ok(());
    }
    if engine.journal.intent().is_empty() {
        put_right(engine, Mode::NewEpochPersistent).await?;
        engine.mark().await?;
    } else {
        close(engine).await?;
    }
    engine.set_status(Status::Current);
    Ok(())
}

/// Looks for what is gone although nobody asked this proxy for it: it is said by name, and forgotten.
///
/// # Errors
/// When the daemon does not answer.
pub(super) async fn look_for_losses(engine: &mut Engine) -> Result<(), ChangeError> {
    let is_settled = engine.status() == Status::Current && engine.journal.intent().is_empty();
    if !is_settled || engine.look(Registry::is_empty) {
        return Ok(());
    }
    let (mut answers, mut found) = ask(engine, Mode::SameEpoch).await?;
    engine.confirm_epoch().await?;
    if std::mem::take(&mut engine.was_withheld) && !found.events.is_empty() {
        add_withheld(engine).await?;
        (answers, found) = ask(engine, Mode::SameEpoch).await?;
        engine.confirm_epoch().await?;
    }
    if !found.events.is_empty() {
        engine.say_gone(&found.events, Cause::Removed);
        engine.note(found.events);
        engine.write_persist_file();
    }
    engine.held = engine.look(|registry| reconcile::held(registry, &answers));
    let lacks_marker = engine.look(|registry| {
        registry
            .marker()
            .is_some_and(|name| !answers.is_active(name))
    });
    match engine.look(Registry::has_no_entries) {
        _ if !lacks_marker => Ok(()),
        true => {
            forget_all(engine);
            Ok(())
        }
        false => engine.mark_if_possible().await,
    }
}

/// Somebody's update straight on supervisord may have met a moment in which the persist file was
/// withheld, and taken what is in it for gone: it is added again.
async fn add_withheld(engine: &mut Engine) -> Result<(), ChangeError> {
    let reloaded = engine.call("supervisor.reloadConfig").await?;
    let reloaded = ReloadResult::read(&reloaded);
    let mut lacking = engine.look(real_groups);
    lacking.retain(|name| reloaded.added.contains(name));
    if lacking.is_empty() {
        return Ok(());
    }
    tracing::warn!(groups = ?lacking, "adding again what was removed straight on supervisord just when the persist file was withheld for a change: remove it through twiddler if it is to go");
    add_groups(engine, &lacking).await
}

async fn take_stock(engine: &mut Engine) -> Result<Status, ChangeError> {
    let is_first = !engine.has_adopted();
    let mode = mode(engine, is_first).await?;
    let is_new = mode != Mode::SameEpoch;
    if is_new {
        engine.begin_epoch();
    }
    let mut status = Status::Current;
    match mode {
        Mode::NewEpoch => forget(engine, is_first).await?,
        Mode::NewEpochPersisted | Mode::NewEpochPersistent => {
            warn_of_defined(engine);
            if is_first {
                // What marks its epoch may also have been removed.
                tracing::info!("taking up what supervisord has of what was kept")
            } else {
                tracing::info!("supervisord was started again with what was kept")
            }
            status = take_up(engine, mode).await?;
        }
        _ => {}
    }
    if !engine.journal.intent().is_empty() {
        status = match close(engine).await {
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
        engine.look(|registry| losses::warn_of_clashes(registry, &configured));
    }
    Ok(status)
}

/// Which epoch the daemon is in, and what it has read.
async fn mode(engine: &mut Engine, is_first: bool) -> Result<Mode, ChangeError> {
    // The option may have been switched off after the daemon read what was kept, or on after it read
    // nothing.
    let is_kept = if is_first {
        engine.kept_before.is_some()
    } else {
        engine.persists()
    };
    let goes_on = if engine.look(Registry::is_empty) {
        // Nothing of ours tells one epoch from the next, so a change cut short is trusted to.
        is_first || is_kept || engine.journal.intent().is_empty()
    } else {
        goes_on(engine, is_kept).await?
    };
    Ok(match (goes_on, is_kept, engine.persists()) {
        (true, ..) => Mode::SameEpoch,
        (false, false, _) => Mode::NewEpoch,
        (false, true, false) => Mode::NewEpochPersisted,
        (false, true, true) => Mode::NewEpochPersistent,
    })
}

/// Whether anything that shows the epoch is still in the daemon.
async fn goes_on(engine: &mut Engine, is_kept: bool) -> Result<bool, ChangeError> {
    let configured = engine.configured();
    let signs = engine.look(|registry| reconcile::signs(registry, &configured, is_kept));
    let queries = signs.iter().cloned().map(Query::Group).collect();
    let answers = engine.query(queries).await?;
    if !signs.iter().any(|name| answers.is_active(name)) {
        return Ok(false);
    }
    let is_real = |name: &String| engine.look(|registry| registry.owner(name).is_some());
    if is_kept
        || signs
            .iter()
            .any(|name| answers.is_active(name) && !is_real(name))
    {
        return Ok(true);
    }
    let gone = engine.look(|registry| reconcile::vanished(registry, &answers));
    engine.say_gone(&gone, Cause::Unknown);
    engine.note(gone);
    if engine.journal.intent().is_empty() {
        engine.mark_if_possible().await?;
    }
    Ok(true)
}

/// A daemon that started again has nothing of ours, but what it read by accident: a file that was there
/// for its former epoch.
async fn forget(engine: &mut Engine, is_first: bool) -> Result<(), ChangeError> {
    let cause = if is_first {
        Cause::Unknown
    } else {
        Cause::Restarted
    };
    let everything = engine.look(losses::everything);
    match everything.is_empty() {
        false => engine.say_gone(&everything, cause),
        true if !is_first => {
            tracing::info!("supervisord was started again: only its configuration files count now");
        }
        true => {}
    }
    // What an earlier proxy had begun may have been there for it to read; anything else of that is not
    // there any more.
    if !is_first || !engine.journal.intent().is_empty() {
        let (_, found) = ask(engine, Mode::NewEpoch).await?;
        engine.remove(&strays(&found), &BTreeSet::new()).await?;
        engine.remove(&found.anew, &found.anew).await?;
    }
    forget_all(engine);
    Ok(())
}

/// Generated groups that go; the user's own are removed after them.
fn strays(found: &Reconciliation) -> BTreeSet<String> {
    found.remove.difference(&found.anew).cloned().collect()
}

/// Says what was added and is the files' from now on.
fn warn_of_defined(engine: &Engine) {
    let configured = engine.configured();
    let defined = engine.look(|registry| without_defined(registry, &configured).1);
    if !defined.is_empty() {
        tracing::warn!(
            "{}: was added, and supervisord's files define it now: there is only theirs from now on",
            defined.join(", ")
        );
    }
}

fn forget_all(engine: &mut Engine) {
    let mut registry = engine.look(Registry::clone);
    registry.clear();
    engine.replace(registry);
}

/// The daemon started again and read what was kept. What it has is made to be what was answered, and no
/// more and no less than that: it may have read a file that a change had not reached yet, or that
/// somebody has put there.
async fn take_up(engine: &mut Engine, mode: Mode) -> Result<Status, ChangeError> {
    let intent = match mode {
        Mode::NewEpochPersisted => engine.journal.intent().to_vec(),
        _ => Vec::new(),
    };
    let status = match put_right(engine, mode).await {
        Ok(()) => {
            if engine.journal.intent().is_empty() {
                engine.mark_if_possible().await?;
            }
            Status::Current
        }
        Err(error) if is_about_files(&error) => {
            tracing::error!(reason = %error, "supervisord lacks what it did not read when it started: it is added again before the next change");
            Status::Behind
        }
        Err(error) => return Err(error),
    };
    if !intent.is_empty() {
        // What was under way may have been kept before it happened.
        let _reopened = engine.intend(intent, false)?;
        close(engine).await?;
    }
    Ok(status)
}

/// Makes the daemon have of ours what it is to have, and takes note of that. A member that it does not
/// take any more is forgotten.
async fn put_right(engine: &mut Engine, mode: Mode) -> Result<(), ChangeError> {
    let (_, found) = ask(engine, mode).await?;
    // What was removed, and a file has started again.
    engine.stop(found.stop.iter()).await?;
    let mut now = found.registry;
    let made = match mode {
        Mode::NewEpochPersistent => {
            engine.remove(&found.remove, &BTreeSet::new()).await?;
            make(engine, &mut now).await
        }
        _ => Ok(()),
    };
    match &made {
        Err(error) if !is_about_files(error) => {}
        _ => engine.replace(now),
    }
    made
}

/// Keeps what `now` says, and lets the daemon add what it has not of it.
async fn make(engine: &mut Engine, now: &mut Registry) -> Result<(), ChangeError> {
    // Each time without one member.
    for _ in 0..=now.members().count() {
        let written = engine.write_persist_file_of(now);
        written.map_err(|error| engine.cannot_write(&error))?;
        match add_kept(engine, now).await {
            Err(ChangeError::Fault(told)) if told.code == CANT_REREAD => {
                let event = persist::refused_member(now, &told.text).ok_or(told.clone())?;
                tracing::error!(
                    fault = reason(&told),
                    ?event,
                    "it cannot be added again, and is forgotten"
                );
                now.apply(event);
            }
            other => return other,
        }
    }
    Err(engine.not_read().await.into())
}

/// Lets the daemon read what is kept, and adds what it has not or has otherwise.
async fn add_kept(engine: &mut Engine, now: &Registry) -> Result<(), ChangeError> {
    let reloaded = engine.call("supervisor.reloadConfig").await?;
    let reloaded = ReloadResult::read(&reloaded);
    let ours = real_groups(now);
    // Real groups bear a number that no other program has had.
    let is_changed =
        |name: &String| reloaded.changed.contains(name) && now.added_group(name).is_some();
    let changed: BTreeSet<String> = ours
        .iter()
        .filter(|name| is_changed(name))
        .cloned()
        .collect();
    let is_lacking = |name: &String| reloaded.added.contains(name) || changed.contains(name);
    let lacking: BTreeSet<String> = ours.into_iter().filter(is_lacking).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    tracing::warn!(groups = ?lacking, "adding what supervisord did not read when it started");
    engine.stop_and_remove(&changed).await?;
    add_groups(engine, &lacking).await
}

/// Lets the daemon add groups as it has read them. What it refuses is said.
async fn add_groups(engine: &mut Engine, groups: &BTreeSet<String>) -> Result<(), ChangeError> {
    let add = |name: &String| -> Call { (ADD, vec![name.as_str().into()]) };
    let calls: Vec<Call> = groups.iter().map(add).collect();
    for (group, added) in groups.iter().zip(engine.multicall(&calls).await?) {
        if let Err(told) = added {
            tracing::error!(group, fault = reason(&told), "it cannot be added again");
        }
    }
    Ok(())
}

/// Closes the open intent: asks the daemon which of its steps it made.
///
/// # Errors
/// When groups that it lost cannot be added again yet; the intent stays open then.
async fn close(engine: &mut Engine) -> Result<(), ChangeError> {
    let (_, found) = ask(engine, Mode::SameEpoch).await?;
    if !found.events.is_empty() {
        tracing::info!(
            steps = found.events.len(),
            "supervisord made a change that was cut short here"
        );
    }
    if let Err(error) = restore(engine, &found.restore).await {
        tracing::error!(reason = %error, groups = ?found.restore, "groups were lost in a change that was cut short, and cannot be added again yet");
        engine.note(found.events);
        return Err(error);
    }
    engine.close_intent(found.events);
    Ok(())
}

async fn restore(engine: &mut Engine, groups: &[(String, i64)]) -> Result<(), ChangeError> {
    if groups.is_empty() {
        return Ok(());
    }
    let text: String = groups
        .iter()
        .map(|(name, priority)| program::render_group(name, *priority, &[]))
        .collect();
    let names: Vec<String> = groups.iter().map(|(name, _)| name.clone()).collect();
    tracing::warn!(groups = ?names, "adding groups again that were lost in a change that was cut short");
    engine.add_read(&text, &names).await
}

/// Takes up groups that the daemon has of ours and nobody remembers.
async fn adopt(engine: &mut Engine) -> Result<(), ChangeError> {
    let (_, found) = ask(engine, Mode::FirstStart).await?;
    let joined = |event: &&Event| matches!(event, Event::Joined(_));
    let is_number = |event: &Event| matches!(event, Event::Next(_));
    let processes = match found.events.iter().filter(joined).count() {
        1 => "1 process".to_owned(),
        many => format!("{many} processes"),
    };
    if !found.events.iter().all(is_number) {
        tracing::warn!("recovered {processes} from supervisord that the journal does not have");
    }
    engine.note(found.events);
    Ok(())
}

/// Asks what must be known, and reconciles.
async fn ask(engine: &mut Engine, mode: Mode) -> Result<(Answers, Reconciliation), Interrupted> {
    let intent = engine.journal.intent().to_vec();
    // While the daemon goes on, nothing is decided by files.
    let (configured, kept) = match mode {
        Mode::SameEpoch => Default::default(),
        _ => (engine.configured(), kept(engine, mode)),
    };
    let own = engine.own_groups();
    let registry = match mode {
        Mode::NewEpochPersisted | Mode::NewEpochPersistent => {
            engine.look(|registry| without_defined(registry, &configured).0.into_owned())
        }
        _ => engine.look(Registry::clone),
    };
    let known = Known {
        registry: &registry,
        intent: &intent,
        kept: &kept,
        configured: &configured,
        own: &own,
    };
    let answers = engine.query(reconcile::queries(known, mode)).await?;
    let found = reconcile(known, &answers, mode);
    Ok((answers, found))
}

/// What the daemon may have read of what was kept, now or when this proxy started.
fn kept(engine: &Engine, mode: Mode) -> Contents {
    let before = engine.kept_before.as_deref().unwrap_or_default();
    let mut kept = Contents::read(before);
    if mode == Mode::NewEpochPersistent
        && let Some(now) = engine.persist.as_ref().and_then(|persist| persist.read())
    {
        kept.groups.extend(Contents::read(&now).groups);
    }
    kept
}

/// Whether the user's files or the disk are what is in the way.
fn is_about_files(error: &ChangeError) -> bool {
    error
        .fault()
        .is_some_and(|told| told.code != SHUTDOWN_STATE)
}
