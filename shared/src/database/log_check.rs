//! A look at the write-ahead log before SQLite opens it. SQLite takes the first frame that it cannot read for the end of
//! the log, which is right after a power loss and loses what was acknowledged when somebody damaged the file.
//!
//! After a kill without a power loss every frame must be there, and the log's index, which is left behind too, says how
//! many were committed. Format: sqlite.org, "The WAL-mode File Format".

use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::Path;

/// Bytes of the log's header.
pub(super) const HEADER: usize = 32;
/// Bytes of a frame's header.
pub(super) const FRAME: usize = 24;
/// Bytes of the index's header, of which there are two copies.
const INDEX: usize = 48;
/// The header's first word, but for the byte order of checksums in its last bit.
const MAGIC: u32 = 0x377f_0682;

/// Checks the header of the log at `log`.
///
/// # Errors
/// It is damaged, in words.
pub(super) fn check_header(log: &Path) -> Result<(), String> {
    look(log, |log| open(log).map(drop))
}

/// Checks that the log at `log` holds every frame that its index at `index` knows as committed.
///
/// # Errors
/// It does not, in words.
pub(super) fn check(log: &Path, index: &Path) -> Result<(), String> {
    look(log, |log| {
        let Some((header, mut file)) = open(log)? else {
            return Ok(());
        };
        let Some(committed) = committed(index, header.salt) else {
            return Ok(()); // nothing is known: a log begun anew, or no index
        };
        match header.first_bad_frame(&mut file, committed)? {
            None => Ok(()),
            Some(bad) => Err(Bad::Text(format!("frame {bad} of {committed} is not what was written"))),
        }
    })
}

/// How many frames of `log` in a row are what was written, from the first on.
pub(super) fn intact(log: &[u8]) -> usize {
    let Some((header, mut frames)) = log.split_first_chunk::<HEADER>() else {
        return 0;
    };
    let bad = Header::parse(header).map(|header| header.first_bad_frame(&mut frames, u32::MAX));
    match bad {
        Some(Ok(Some(bad))) => usize::try_from(bad - 1).unwrap_or(usize::MAX),
        _ => 0,
    }
}

enum Bad {
    Io(io::Error),
    Text(String),
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn look(log: &Path, work: impl FnOnce(&Path) -> Result<(), Bad>) -> Result<(), String> {
    work(log).map_err(|bad| match bad {
        Bad::Io(error) => format!("its log {} cannot be read: {error}", log.display()),
        Bad::Text(text) => format!("its log {}: {text}", log.display()),
    })
}

/// The log's header and what is behind it. `None`: there is no log, or nothing in it.
fn open(log: &Path) -> Result<Option<(Header, BufReader<File>)>, Bad> {
    let file = match File::open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut bytes = [0; HEADER];
    match file.read_exact(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    if bytes == [0; HEADER] {
        return Ok(None); // made, and lost before it was synced
    }
    let header = Header::parse(&bytes).ok_or_else(|| Bad::Text("its header is not what was written".to_owned()))?;
    Ok(Some((header, file)))
}

#[derive(Debug)]
struct Header {
    big_endian: bool,
    page: usize,
    salt: [u8; 8],
    sum: Sum,
}

impl Header {
    fn parse(bytes: &[u8; HEADER]) -> Option<Self> {
        let magic = word(bytes, 0);
        let big_endian = magic & 1 == 1;
        let sum = Sum::default().add(&bytes[..24], big_endian);
        let page = usize::try_from(word(bytes, 8)).ok()?;
        let good = magic & !1 == MAGIC
            && sum == Sum(word(bytes, 24), word(bytes, 28))
            && page.is_power_of_two()
            && (512..=65536).contains(&page);
        let mut salt = [0; 8];
        salt.copy_from_slice(&bytes[16..24]);
        good.then_some(Self {
            big_endian,
            page,
            salt,
            sum,
        })
    }

    /// The first of `frames` frames in `file` that is missing or differs, counted from 1.
    fn first_bad_frame(&self, file: &mut impl io::Read, frames: u32) -> io::Result<Option<u32>> {
        let mut sum = self.sum;
        let mut frame = vec![0; FRAME + self.page];
        for number in 1..=frames {
            match file.read_exact(&mut frame) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Some(number)),
                read => read?,
            }
            sum = sum
                .add(&frame[..8], self.big_endian)
                .add(&frame[FRAME..], self.big_endian);
            if frame[8..16] != self.salt || sum != Sum(word(&frame, 16), word(&frame, 20)) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }
}

/// The checksum of the log: each frame's covers all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum(u32, u32);

impl Sum {
    fn add(mut self, bytes: &[u8], big_endian: bool) -> Self {
        for pair in bytes.chunks_exact(8) {
            let number = |at| {
                let word = word(pair, at);
                if big_endian { word } else { word.swap_bytes() }
            };
            self.0 = self.0.wrapping_add(number(0)).wrapping_add(self.1);
            self.1 = self.1.wrapping_add(number(4)).wrapping_add(self.0);
        }
        self
    }
}

/// The big-endian number at `at`.
fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(word)
}

/// How many frames of the log with `salt` are committed, by its index. `None` if that cannot be told.
fn committed(index: &Path, salt: [u8; 8]) -> Option<u32> {
    let mut file = File::open(index).ok()?;
    let mut bytes = [0; 2 * INDEX];
    file.read_exact(&mut bytes).ok()?;
    let (one, other) = bytes.split_at(INDEX);
    // The index is in the machine's own byte order; the salt stands in it as in the log.
    let native = cfg!(target_endian = "big");
    let number = |at| {
        let word = word(one, at);
        if native { word } else { word.swap_bytes() }
    };
    let whole = one == other && Sum::default().add(&one[..40], native) == Sum(number(40), number(44));
    (whole && one[32..40] == salt).then(|| number(16))
}
