//! Whether a server has what it acknowledged: a fast server that loses is no result.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::thread;

use shared::checksum::Crc64;

use crate::failure::Failure;
use crate::load::{Connection, Payload, UploadPath};
use crate::plan::{Competitor, Workload};

/// Read at once.
const STEP: usize = 1024 * 1024;

/// Asks the server for every upload: each must be another one, and whole.
///
/// # Errors
/// `Lost`, or an answer that says something else.
pub(crate) fn whole(
    connections: &mut [Connection],
    uploads: &[UploadPath],
    workload: &Workload,
) -> Result<(), Failure> {
    let distinct: HashSet<&UploadPath> = uploads.iter().collect();
    if distinct.len() != workload.uploads {
        return Err(Failure::Lost {
            object: "acknowledged uploads".to_owned(),
            expected: workload.uploads.to_string(),
            found: distinct.len().to_string(),
        });
    }
    let share = uploads.len().div_ceil(connections.len());
    thread::scope(|scope| {
        let asking: Vec<_> = connections
            .iter_mut()
            .zip(uploads.chunks(share))
            .map(|(connection, uploads)| {
                scope.spawn(move || {
                    uploads
                        .iter()
                        .try_for_each(|upload| connection.expect_whole(upload, workload.size_bytes))
                })
            })
            .collect();
        asking
            .into_iter()
            .try_for_each(|asked| asked.join().expect("a sender returns its failures"))
    })
}

/// Reads back what lies in the folders of `server`: as many files as were sent, and each of them right.
///
/// # Errors
/// `Lost` names the first file that is not.
pub(crate) fn stored(folder: &Path, server: Competitor, workload: &Workload, payload: &Payload) -> Result<(), Failure> {
    let expected = payload.checksum(workload.size_bytes);
    let mut buffer = vec![0; STEP];
    for name in server.folders() {
        let folder = folder.join(name);
        let files = check_below(&folder, expected, &mut buffer)?;
        if files != workload.uploads {
            return Err(Failure::Lost {
                object: folder.display().to_string(),
                expected: format!("{} files", workload.uploads),
                found: files.to_string(),
            });
        }
    }
    Ok(())
}

/// Checks every file below `folder`, without those that servers keep for themselves, and counts them.
fn check_below(folder: &Path, expected: Crc64, buffer: &mut [u8]) -> Result<usize, Failure> {
    let listed = || Failure::io("list", folder.display());
    let mut files = 0;
    for entry in fs::read_dir(folder).map_err(listed())? {
        let entry = entry.map_err(listed())?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type().map_err(listed())?.is_dir() {
            files += check_below(&entry.path(), expected, buffer)?;
        } else {
            check(&entry.path(), expected, buffer)?;
            files += 1;
        }
    }
    Ok(files)
}

fn check(path: &Path, expected: Crc64, buffer: &mut [u8]) -> Result<(), Failure> {
    let found = checksum(path, buffer).map_err(Failure::io("read", path.display()))?;
    let lost = |expected: String, found: String| Failure::Lost {
        object: path.display().to_string(),
        expected,
        found,
    };
    if found.covered() != expected.covered() {
        let bytes = |crc: Crc64| format!("{} bytes", crc.covered());
        return Err(lost(bytes(expected), bytes(found)));
    }
    if found != expected {
        return Err(lost(
            format!("the checksum {}", expected.to_base64()),
            found.to_base64(),
        ));
    }
    Ok(())
}

fn checksum(path: &Path, buffer: &mut [u8]) -> std::io::Result<Crc64> {
    let mut file = File::open(path)?;
    let mut crc = Crc64::default();
    loop {
        match file.read(buffer)? {
            0 => return Ok(crc),
            read => crc.update(&buffer[..read]),
        }
    }
}
