//! Parses dates and base64 as the daemon does (`supervisor/xmlrpc.py`, `unmarshallers`): with the results
//! of Python's `time.strptime` and `base64.decodebytes`.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Returns whether the text is a valid time in the format `%Y%m%dT%H:%M:%S`.
///
/// Python accepts every field except the year without its leading zero.
pub(super) fn is_date_time(text: &str) -> bool {
    let Some((date, time)) = text.split_once(['T', 't']) else {
        return false;
    };
    is_date(date) && is_time(time)
}

fn is_date(date: &str) -> bool {
    let Some((year, rest)) = date.split_at_checked(4) else {
        return false;
    };
    let year = number(year, 4..=4);
    // Python takes the first split that matches both fields, and checks the calendar afterwards.
    let split = [2, 1].into_iter().find_map(|width| {
        let (month, day) = rest.split_at_checked(width)?;
        Some((month_number(month)?, day_number(day)?))
    });
    match (year, split) {
        (Some(year @ 1..), Some((month, day))) => day <= days_in(year, month),
        _ => false,
    }
}

fn month_number(text: &str) -> Option<u32> {
    number(text, 1..=2).filter(|month| (1..=12).contains(month))
}

fn day_number(text: &str) -> Option<u32> {
    let digits = match text.strip_prefix(' ') {
        Some(digit) if digit.len() == 1 => digit,
        Some(_) => return None,
        None => text,
    };
    number(digits, 1..=2).filter(|day| (1..=31).contains(day))
}

fn days_in(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => {
            29
        }
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Returns whether the time is valid. `strptime` accepts leap seconds, but the daemon converts the result
/// to a `datetime`, which has none.
fn is_time(time: &str) -> bool {
    let mut fields = time.split(':').map(|field| number(field, 1..=2));
    let in_order = [23, 59, 59]
        .into_iter()
        .all(|last| fields.next().flatten().is_some_and(|field| field <= last));
    in_order && fields.next().is_none()
}

/// Parses a number with a number of digits in `width`.
fn number(text: &str, width: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let fits = width.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    fits.then(|| text.parse().ok()).flatten()
}

/// The decoder. `base64_characters` checks the padding, and Python ignores extra bits in the last
/// character.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

/// Decodes base64. Returns `None` if it is incomplete or not UTF-8.
///
/// Python ignores characters outside of the alphabet, and everything after the padding of a group.
pub(super) fn base64(text: &str) -> Option<String> {
    let decoded = BASE64.decode(base64_characters(text)?).ok()?;
    String::from_utf8(decoded).ok()
}

/// Returns the characters with data, or `None` if the last group has no padding.
fn base64_characters(text: &str) -> Option<Vec<u8>> {
    let mut characters = Vec::with_capacity(text.len());
    let mut pads = 0;
    for byte in text.bytes() {
        match byte {
            b'=' => {
                let place = characters.len() % 4;
                pads += usize::from(place >= 2);
                if place >= 2 && place + pads >= 4 {
                    return Some(characters);
                }
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => {
                characters.push(byte);
                pads = 0;
            }
            _ => {}
        }
    }
    characters.len().is_multiple_of(4).then_some(characters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_valid_as_in_python() {
        for text in [
            "20240131T23:59:59",
            "20240229T00:00:00",
            "20000229T00:00:00",
            "2024111t1:2:3",
            "2024131T1:2:3",
            "20241 5T1:2:3",
            "00010101T0:0:0",
        ] {
            assert!(is_date_time(text), "{text:?}");
        }
        for text in [
            "",
            "T",
            "20240131",
            "20240131T23:59",
            "20240131T23:59:59Z",
            " 20240131T23:59:59",
            "20240131 23:59:59",
            "20230229T00:00:00",
            "19000229T00:00:00",
            "20241131T00:00:00",
            "2024230T00:00:00",
            "00000101T00:00:00",
            "20241301T00:00:00",
            "20240001T00:00:00",
            "20240100T00:00:00",
            "202411T00:00",
            "20240131T24:00:00",
            "20240131T00:60:00",
            "20240131T00:00:60",
            "20240131T00:00:000",
            "20240131T+1:00:00",
            "2024é1T00:00:00",
            "2024 11T1:2:3",
            "20241  5T1:2:3",
        ] {
            assert!(!is_date_time(text), "{text:?}");
        }
    }

    #[test]
    fn base64_is_decoded_as_python_decodes_it() {
        for (text, expected) in [
            ("", Some("")),
            ("aGk=", Some("hi")),
            ("aGVsbG8=\n", Some("hello")),
            (" a-G*k\u{e9}=", Some("hi")),
            ("aGk=aGk=", Some("hi")),
            ("aA==", Some("h")),
            ("aB==", Some("h")),
            ("a=A=b=\nA==", Some("h\u{6}")),
            ("a=GV=s=", Some("he")),
            ("====", Some("")),
            ("=aGk=", Some("hi")),
            ("aG=k", None),
            ("aGk", None),
            ("aA=", None),
            ("a", None),
            ("a===", None),
            ("/w==", None),
        ] {
            assert_eq!(base64(text).as_deref(), expected, "{text:?}");
        }
    }
}
