//! Row 1: `kill -9` at random bytes of a PATCH. Promise 1 of DESIGN.md: an acknowledged byte is never lost.

use std::fs;

use futures_util::future::join_all;
use tests::oracle::seed;
use tests::pattern::{Random, pattern};
use tests::proxy::{Ending, Faults, Way};
use tests::raw::SlowPatch;
use tests::site::LIMIT;
use tests::wait::eventually;

use super::{Far, MIB, index, length};

const UPLOADS: u64 = 4;
const SIZE: usize = 16 * MIB;
const KILLS: u64 = 6;
/// Of each connection, in bytes a second: slow enough for a kill to find it in the middle.
const RATE: u64 = 6_000_000;
/// As far as one connection gets, however late the kill comes: no upload is finished before the last kill.
const FURTHEST: u64 = (16 * 1024 * 1024) / (KILLS + 1);

/// Row 1: every later HEAD ≥ the last acknowledged offset, prefix identical, resume works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_a_patch_loses_nothing_acknowledged() {
    let mut random = Random::new(seed());
    for durability in ["finish", "patch"] {
        let mut far = Far::start(&[("DURABILITY", durability)]).await;
        let slow = Faults::none().rate(Way::ToServer, RATE);
        far.proxy.set(slow.end(Way::ToServer, FURTHEST, Ending::Stall));
        let contents: Vec<Vec<u8>> = (0..UPLOADS).map(|seed| pattern(seed, SIZE)).collect();
        let client = far.site.client();
        let ids: Vec<String> = join_all((0..UPLOADS).map(|_| client.create(SIZE, &[])))
            .await
            .into_iter()
            .map(|upload| upload.id)
            .collect();
        let mut acknowledged = vec![0; contents.len()];
        let mut in_the_middle = 0;
        for _ in 0..KILLS {
            let kill_at = random.below(FURTHEST * UPLOADS * 9 / 10);
            let passed_before = far.proxy.counts().to_server;
            let client = far.site.client();
            let mut senders = tokio::task::JoinSet::new();
            for ((id, content), acknowledged) in ids.iter().zip(&contents).zip(&mut acknowledged) {
                let upload = client.upload_of(id);
                // A whole small PATCH, answered, and a large one behind it that never ends.
                *acknowledged = upload
                    .append(*acknowledged, &content[index(*acknowledged)..][..1_000])
                    .await;
                let (addr, at, rest) = (
                    far.proxy.addr(),
                    *acknowledged,
                    content[index(*acknowledged)..].to_vec(),
                );
                senders.spawn(async move {
                    let mut patch = SlowPatch::try_begin(addr, &upload.path(), at, rest.len()).await?;
                    patch.send(&rest).await
                });
            }
            eventually("the moment of the kill", LIMIT, || {
                let passed = far.proxy.counts().to_server - passed_before;
                let (client, ids) = (&client, &ids);
                async move {
                    // What HEAD tells on the way is acknowledged as well.
                    let told = join_all(ids.iter().map(|id| async move { client.upload_of(id).offset().await })).await;
                    (passed >= kill_at).then_some(told)
                }
            })
            .await
            .into_iter()
            .zip(&mut acknowledged)
            .for_each(|(told, acknowledged)| {
                assert!(told >= *acknowledged, "{told} after {acknowledged} was told");
                in_the_middle += u64::from(told > *acknowledged);
                *acknowledged = told;
            });
            far.site.kill();
            senders.shutdown().await;
            assert_prefixes(&far, &contents, &acknowledged);
            far.site.restart().await;
            let client = far.site.client();
            for (id, acknowledged) in ids.iter().zip(&mut acknowledged) {
                let offset = client.upload_of(id).offset().await;
                assert!(
                    offset >= *acknowledged,
                    "{id}: {acknowledged} was told, and now {offset}"
                );
                assert!(offset < length(SIZE), "{id}: it was to be in the middle");
                *acknowledged = offset;
            }
            eventually("all are counted as recovered", LIMIT, || async {
                let recovered = far.count("ferry_uploads_recovered_total").await;
                assert!(recovered <= UPLOADS, "{recovered}");
                (recovered == UPLOADS).then_some(())
            })
            .await;
        }
        println!(
            "{durability}: {in_the_middle} of {} offsets were told in a PATCH",
            KILLS * UPLOADS
        );
        assert!(in_the_middle > 0, "nothing was acknowledged in the middle of a PATCH");
        far.proxy.set(Faults::none());
        let client = far.site.client();
        for ((id, content), acknowledged) in ids.iter().zip(&contents).zip(&acknowledged) {
            let upload = client.upload_of(id);
            upload.append(*acknowledged, &content[index(*acknowledged)..]).await;
            far.site.expect_delivered(&upload, content).await;
        }
    }
}

/// On the disk, as the kill left it: at least what was acknowledged, and each a prefix of what was sent.
fn assert_prefixes(far: &Far, contents: &[Vec<u8>], acknowledged: &[u64]) {
    let staged = far.site.staged("raw");
    assert_eq!(staged.len(), contents.len(), "{staged:?}");
    for path in staged {
        let bytes = fs::read(&path).expect("read a staged file");
        let owner = contents.iter().position(|content| content.starts_with(&bytes));
        let owner = owner.unwrap_or_else(|| panic!("{} is no prefix of anything sent", path.display()));
        assert!(
            length(bytes.len()) >= acknowledged[owner],
            "{} is too short",
            path.display()
        );
    }
}
