//! Reads a password from a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::OFlag;

/// The permission of all other accounts to read a file.
const OTHERS_READ: u32 = 0o004;
/// The largest size of the file.
const MAX_BYTES: u64 = 4096;

/// Reads a password: the text of a file, without the line break at its end.
///
/// # Errors
/// The file cannot be read, is open to other accounts, or contains no password. The text says what to do
/// and does not contain the password.
pub fn read(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let failed = |cause: io::Error| {
        format!("{shown} cannot be read ({cause}); let the account of twiddler read it")
    };
    // Without O_NONBLOCK, opening a FIFO would wait for a writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(format!("{shown} is no regular file; name one that is"));
    }
    if metadata.permissions().mode() & OTHERS_READ != 0 {
        return Err(format!(
            "every account can read {shown}; write chmod 0640 {shown}"
        ));
    }
    let text = read_bounded(file).map_err(failed)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    match line {
        "" => Err(format!("{shown} is empty; write the password into it")),
        line if line.contains('\n') || text.len() as u64 > MAX_BYTES => Err(format!(
            "{shown} holds more than a password; write the password alone into it"
        )),
        line => Ok(line.to_owned()),
    }
}

/// Reads [`MAX_BYTES`] and one more byte at most, which shows that the file is too large.
fn read_bounded(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    #[test]
    fn a_password_is_the_text_of_the_file_without_its_line_break() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let long = "x".repeat(5000);
        for (text, mode, expected) in [
            ("secret", 0o600, Ok("secret")),
            ("secret\n", 0o640, Ok("secret")),
            ("secret\r\n", 0o400, Ok("secret")),
            (" se cret \n", 0o600, Ok(" se cret ")),
            ("secret\n", 0o644, Err("every account can read")),
            ("", 0o600, Err("is empty")),
            ("\n", 0o600, Err("is empty")),
            ("secret\nother\n", 0o600, Err("more than a password")),
            (&long, 0o600, Err("more than a password")),
        ] {
            let _ = fs::remove_file(&path);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match (read(&path), expected) {
                (Ok(password), Ok(expected)) => assert_eq!(password, expected),
                (Err(reason), Err(expected)) => {
                    assert!(reason.contains(expected), "{reason}");
                    assert!(!reason.contains("secret"), "{reason}");
                }
                (result, _) => panic!("{text:?} {mode:o}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_fifo_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        for path in [&fifo, dir.path()] {
            assert!(read(path).unwrap_err().contains("no regular file"));
        }
        let reason = read(&dir.path().join("missing")).unwrap_err();
        assert!(reason.contains("cannot be read"), "{reason}");
    }
}
