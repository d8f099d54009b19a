//! The pure and synchronous part of the core, tested in tables.

pub(super) mod answers;
pub(super) mod change;
pub(super) mod plan;
pub(super) mod reconcile;
pub(super) mod script;
pub(super) mod view;

#[cfg(test)]
mod simulation;
