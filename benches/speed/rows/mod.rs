//! The rows of the table, by what they are about.

pub(crate) mod changes;
pub(crate) mod forwarding;
pub(crate) mod persist;
pub(crate) mod resources;
pub(crate) mod tail;
pub(crate) mod updates;
