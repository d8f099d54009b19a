//! Random choices that can be repeated.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;

/// A generator of random numbers (SplitMix64), for runs that can be repeated.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub(crate) fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    /// Returns a text of up to `max` parts from `choices`, with conversions of these names among them.
    pub(crate) fn text(&mut self, choices: &[&str], conversions: &[&str], max: usize) -> String {
        let parts = self.below(max + 1);
        let part = |dice: &mut Self| {
            if !conversions.is_empty() && dice.one_in(8) {
                dice.conversion(conversions)
            } else {
                dice.pick(choices).to_owned()
            }
        };
        (0..parts).map(|_| part(self)).collect()
    }

    /// Returns a conversion with random flags, width, precision and type.
    fn conversion(&mut self, names: &[&str]) -> String {
        let name = self.pick(names);
        let kinds: &[&str] = match name {
            "process_num" | "numprocs" => &[
                "d", "d", "i", "u", "o", "x", "X", "s", "r", "a", "e", "E", "f", "F", "g", "G",
            ],
            _ => &["s", "s", "ls", "r", "a"],
        };
        let flags: String = (0..self.below(3))
            .map(|_| self.pick(&["#", "0", "-", "+", " "]))
            .collect();
        let width = self.pick(&["", "", "3", "12"]);
        let precision = self.pick(&["", "", ".", ".0", ".2", ".9"]);
        format!("%({name}){flags}{width}{precision}{}", self.pick(kinds))
    }
}

/// Returns the seed, and a hint for failure messages on how to repeat the run.
pub(crate) fn seed() -> Result<(u64, String)> {
    let seed = match env::var("TEST_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64,
    };
    Ok((seed, format!("to repeat it, set TEST_SEED={seed}")))
}
