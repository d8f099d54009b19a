//! What is known and what follows from it: pure and synchronous, tested in tables.

pub(super) mod answers;
pub(super) mod change;
pub(super) mod plan;
pub(super) mod reconcile;
pub(super) mod script;
pub(super) mod view;

#[cfg(test)]
mod simulation;
