//! Who may call, beside what credentials decide. A leaf.

pub mod browser;
