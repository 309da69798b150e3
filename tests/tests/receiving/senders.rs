//! A real client over a bad network: `ferry send` through a proxy that cuts, resets, slows and delays at random.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tests::oracle::seed;
use tests::pattern::{Random, pattern};
use tests::proxy::{Break, Ending, Faults, Way};
use tests::site::{Program, Site};

use super::{Far, MIB, length};

/// So many connections, the first ones, all meet their end; together they do not get the whole file through.
const ALL_BROKEN: u64 = 6;
const SIZE: usize = 10 * MIB + 12_345;

/// What the next connection meets, after so many `earlier` ones.
fn faults(random: &mut Random, earlier: u64) -> Faults {
    let milliseconds = |most: u64, random: &mut Random| Duration::from_millis(random.below(most));
    let faults = Faults::none()
        .delay(Way::ToServer, milliseconds(30, random))
        .delay(Way::ToClient, milliseconds(30, random))
        .rate(Way::ToServer, 2_000_000 + random.below(8_000_000));
    let ending = if random.once_in(2) { Ending::Cut } else { Ending::Reset };
    let in_the_request = faults.end(Way::ToServer, random.below(length(SIZE) / ALL_BROKEN), ending);
    match random.below(8) {
        0 if earlier >= ALL_BROKEN => faults,
        1 => in_the_request.end(Way::ToClient, random.below(400), ending),
        2 => in_the_request.end(Way::ToClient, 0, ending),
        _ => in_the_request,
    }
}

/// Rows 1, 3 and 6 together, as a sender meets them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ferry_send_gets_a_file_through_a_network_that_breaks_all_the_time() {
    let seed = seed();
    let far = Far::start(&[]).await;
    let folder = tempfile::tempdir().expect("make a temporary folder");
    let content = pattern(seed, SIZE);
    let file = folder.path().join("sent.bin");
    fs::write(&file, &content).expect("write the file");
    let mut random = Random::new(seed);
    let mut connections = 0..;
    far.proxy
        .set_each(move || faults(&mut random, connections.next().expect("a counter without end")));
    let text = |path: &Path| path.display().to_string();
    let send = Program::new("ferry")
        .arg("send")
        .arg(&text(&file))
        .arg("--to")
        .arg(&format!("http://{}/files/", far.proxy.addr()))
        .arg("--state")
        .arg(&text(&folder.path().join("state")))
        .arg("--wait")
        .arg("--retries")
        .arg("30");
    let ended = send.run(Duration::from_secs(110)).await;
    let counts = far.proxy.counts();
    println!("{counts:?}");
    assert_eq!(ended.status.code(), Some(0), "{counts:?} {ended:#?}");
    assert!(
        counts.cut + counts.reset >= ALL_BROKEN,
        "it had it too easy: {counts:?}"
    );

    let url = ended.stdout.split_whitespace().next().expect("the upload's URL");
    let (_, id) = url.rsplit_once('/').expect("an id behind the last slash");
    far.site
        .expect_delivered(&far.site.client().upload_of(id), &content)
        .await;
    assert_delivered_alone(&far.site);
    far.proxy.break_running(Break::Cut);
}

/// Creations whose answer was lost left uploads without a byte, and no more.
fn assert_delivered_alone(site: &Site) {
    for container in ["raw", "dex", "edav"] {
        assert_eq!(site.files(container).len(), 1, "{container}");
    }
    for path in site.staged("raw") {
        assert_eq!(
            fs::metadata(&path).expect("look at a staged file").len(),
            0,
            "{}",
            path.display()
        );
    }
}
