//! Random choices that a seed repeats. The seed is in the test, or in an environment variable.

use std::str::FromStr;

use anyhow::{Result, bail};

/// A small random number generator (xorshift64*).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// A generator that makes the same choices for the same seed.
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number from 0 to `sides - 1`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }

    /// True with a probability of one in `sides`.
    pub fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }

    /// One of these values.
    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.roll(from.len())]
    }

    /// One of these values; `None` if there are none.
    pub fn choose<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        (!from.is_empty()).then(|| &from[self.roll(from.len())])
    }
}

/// The seed of a test's random choices: `TEST_SEED`, or `usual`.
pub fn seed(usual: u64) -> Result<u64> {
    Ok(number("TEST_SEED")?.unwrap_or(usual))
}

/// The number of repetitions of a test: `usual`, multiplied by `TEST_EFFORT`.
pub fn times(usual: usize) -> Result<usize> {
    Ok(usual * number("TEST_EFFORT")?.unwrap_or(1))
}

fn number<T: FromStr>(variable: &str) -> Result<Option<T>> {
    match std::env::var(variable) {
        Err(_) => Ok(None),
        Ok(text) => match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => bail!("{variable} is {text:?}, which is no number"),
        },
    }
}
