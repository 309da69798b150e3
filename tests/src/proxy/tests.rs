//! The proxy does what it says: each fault as both sides of a connection see it.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::pattern::{assert_same, pattern};
use crate::wait::{eventually, within};

const LIMIT: Duration = Duration::from_secs(20);
/// Long enough for anything that passes at all to be seen.
const WHILE: Duration = Duration::from_millis(200);

/// A proxy, and both ends of the connections through it.
struct Pair {
    proxy: Proxy,
    listener: TcpListener,
}

impl Pair {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).await;
        Self { proxy, listener }
    }

    /// Client's and server's end of a new connection.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let connect = async { tokio::join!(TcpStream::connect(self.proxy.addr()), self.listener.accept()) };
        let (client, server) = within("a connection", LIMIT, connect).await;
        (client.unwrap(), server.unwrap().0)
    }
}

/// All that comes until the end.
async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    within("the end", LIMIT, stream.read_to_end(&mut bytes)).await.unwrap();
    bytes
}

async fn exactly(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    within("bytes", LIMIT, stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// Nothing comes, not even an end.
async fn is_silent(stream: &mut TcpStream) -> bool {
    tokio::time::timeout(WHILE, stream.read_u8()).await.is_err()
}

#[tokio::test]
async fn without_faults_everything_passes_and_ends_are_told_one_by_one() {
    let pair = Pair::new().await;
    let (mut client, mut server) = pair.connect().await;
    let (there, back) = (pattern(1, 3_000_000), pattern(2, 2_000_000));
    let (_, found) = tokio::join!(
        async {
            client.write_all(&there).await.unwrap();
            client.shutdown().await.unwrap();
        },
        rest(&mut server)
    );
    assert_same("to the server", &found, &there);
    assert_eq!(
        (pair.proxy.counts().ended_by_client, pair.proxy.counts().ended_by_server),
        (1, 0)
    );
    let (_, found) = tokio::join!(
        async {
            server.write_all(&back).await.unwrap();
            drop(server);
        },
        rest(&mut client)
    );
    assert_same("to the client", &found, &back);
    assert_eq!(
        pair.proxy.counts(),
        Counts {
            accepted: 1,
            to_server: 3_000_000,
            to_client: 2_000_000,
            ended_by_server: 1,
            ended_by_client: 1,
            ..Counts::default()
        }
    );
}

#[tokio::test]
async fn a_cut_comes_behind_exactly_so_many_bytes() {
    let pair = Pair::new().await;
    for (way, after) in [(Way::ToServer, 0), (Way::ToServer, 50_001), (Way::ToClient, 50_001)] {
        pair.proxy.set(Faults::none().end(way, after, Ending::Cut));
        let (client, server) = pair.connect().await;
        let (mut sender, mut receiver) = match way {
            Way::ToServer => (client, server),
            Way::ToClient => (server, client),
        };
        let content = pattern(after, 60_000);
        sender.write_all(&content).await.unwrap();
        let passed = usize::try_from(after).unwrap();
        assert_same("what passed", &rest(&mut receiver).await, &content[..passed]);
        let told = within("the end", LIMIT, sender.read_u8()).await.unwrap_err();
        assert!(
            matches!(told.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset),
            "{told}"
        );
    }
    assert_eq!(pair.proxy.counts().cut, 3);
}

#[tokio::test]
async fn a_reset_is_one_for_both_sides() {
    let pair = Pair::new().await;
    pair.proxy
        .set_new(Faults::none().end(Way::ToServer, 100, Ending::Reset));
    let (mut client, mut server) = pair.connect().await;
    client.write_all(&pattern(1, 101)).await.unwrap();
    for stream in [&mut client, &mut server] {
        let told = within("the reset", LIMIT, stream.read_to_end(&mut Vec::new())).await;
        assert_eq!(told.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!((pair.proxy.counts().reset, pair.proxy.counts().to_server), (1, 100));

    // Without a byte on the way, and only what runs at that moment.
    pair.proxy.set_new(Faults::none());
    let mut both = pair.connect().await;
    pair.proxy.break_running(Break::Reset);
    for stream in [&mut both.0, &mut both.1] {
        let told = within("the reset", LIMIT, stream.read_u8()).await;
        assert_eq!(told.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    let (mut client, mut server) = pair.connect().await;
    client.write_all(b"x").await.unwrap();
    assert_eq!(exactly(&mut server, 1).await, b"x");
    pair.proxy.break_running(Break::Cut);
    assert_eq!(rest(&mut client).await, b"");
    assert_eq!(rest(&mut server).await, b"");
    assert_eq!((pair.proxy.counts().reset, pair.proxy.counts().cut), (2, 1));
}

/// A peer's own reset goes through the proxy as one.
#[tokio::test]
async fn a_reset_of_a_peer_passes() {
    let pair = Pair::new().await;
    let (client, mut server) = pair.connect().await;
    client.set_zero_linger().unwrap();
    drop(client);
    let told = within("the reset", LIMIT, server.read_u8()).await;
    assert_eq!(told.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_request_passes_whole_and_its_answer_never_does() {
    let pair = Pair::new().await;
    pair.proxy.set(Faults::no_answer());
    let (mut client, mut server) = pair.connect().await;
    client.write_all(b"request").await.unwrap();
    assert_eq!(exactly(&mut server, 7).await, b"request");
    assert!(
        is_silent(&mut client).await,
        "the connection lives until the answer comes"
    );
    server.write_all(b"answer").await.unwrap();
    assert_eq!(rest(&mut client).await, b"");
    assert_eq!((pair.proxy.counts().cut, pair.proxy.counts().to_client), (1, 0));
}

#[tokio::test]
async fn half_of_a_connection_closes_and_the_other_one_lives() {
    let pair = Pair::new().await;
    pair.proxy
        .set(Faults::none().end(Way::ToServer, 1_000, Ending::HalfClose));
    let (mut client, mut server) = pair.connect().await;
    let content = pattern(3, 4_000_000);
    let (_, found) = tokio::join!(
        // All of it is taken, although the server sees a thousand bytes.
        within("everything is sent", LIMIT, client.write_all(&content)),
        rest(&mut server)
    );
    assert_same("what passed", &found, &content[..1_000]);
    server.write_all(b"answer").await.unwrap();
    drop(server);
    assert_eq!(rest(&mut client).await, b"answer");
    assert_eq!(pair.proxy.counts().half_closed, 1);
}

#[tokio::test]
async fn a_black_hole_takes_everything_and_tells_nobody_of_any_end() {
    let pair = Pair::new().await;
    let (mut client, mut server) = pair.connect().await;
    client.write_all(b"before").await.unwrap();
    assert_eq!(exactly(&mut server, 6).await, b"before");
    pair.proxy.set(Faults::blackhole());
    let content = pattern(4, 8_000_000);
    within("everything is taken", LIMIT, client.write_all(&content))
        .await
        .unwrap();
    drop(client);
    eventually("the proxy sees the client's end", LIMIT, || async {
        (pair.proxy.counts().ended_by_client == 1).then_some(())
    })
    .await;
    assert!(is_silent(&mut server).await);
    server.write_all(b"nobody").await.unwrap();

    let (mut client, server) = pair.connect().await;
    drop(server);
    eventually("the proxy sees the server's end", LIMIT, || async {
        (pair.proxy.counts().ended_by_server == 1).then_some(())
    })
    .await;
    assert!(is_silent(&mut client).await);
    let counts = pair.proxy.counts();
    assert_eq!((counts.to_server, counts.to_client, counts.swallowed), (6, 0, 2));
}

#[tokio::test]
async fn a_partition_reads_nothing_and_loses_nothing_when_it_ends() {
    let pair = Pair::new().await;
    let (mut client, mut server) = pair.connect().await;
    pair.proxy.set(Faults::partition());
    let content = pattern(5, 40_000_000);
    let mut sent = 0;
    while let Ok(written) = tokio::time::timeout(WHILE, client.write(&content[sent..])).await {
        sent += written.unwrap();
        assert!(sent < content.len(), "somebody reads");
    }
    assert!(is_silent(&mut server).await);
    assert_eq!((pair.proxy.counts().stalled, pair.proxy.counts().to_server), (1, 0));

    pair.proxy.set_running(Faults::none());
    assert_same("what was held", &exactly(&mut server, sent).await, &content[..sent]);
    server.write_all(b"answer").await.unwrap();
    assert_eq!(exactly(&mut client, 6).await, b"answer");
    // The next connection still meets it.
    let (mut client, mut server) = pair.connect().await;
    client.write_all(b"x").await.unwrap();
    assert!(is_silent(&mut server).await);
}

#[tokio::test]
async fn a_rate_holds_for_its_way_and_can_be_lifted() {
    let pair = Pair::new().await;
    pair.proxy.set(Faults::none().rate(Way::ToServer, 200_000));
    let (mut client, mut server) = pair.connect().await;
    let content = pattern(6, 1_000_000);
    let begin = Instant::now();
    client.write_all(&content[..100_000]).await.unwrap();
    exactly(&mut server, 100_000).await;
    let slow = begin.elapsed();
    assert!(slow >= Duration::from_millis(400), "100 kB at 200 kB/s in {slow:?}");
    let begin = Instant::now();
    server.write_all(&content).await.unwrap();
    exactly(&mut client, content.len()).await;
    assert!(begin.elapsed() < slow * 5, "the other way has no rate");
    assert!(pair.proxy.counts().slowed > 10);

    // A byte a second, and then no limit: what waits does not wait on.
    pair.proxy.set_running(Faults::none().rate(Way::ToServer, 1));
    client.write_all(&content).await.unwrap();
    exactly(&mut server, 1).await;
    pair.proxy.set_running(Faults::none());
    assert_same(
        "the rest",
        &exactly(&mut server, content.len() - 1).await,
        &content[1..],
    );
}

#[tokio::test]
async fn a_delay_makes_everything_later_and_nothing_slower() {
    let pair = Pair::new().await;
    let delay = Duration::from_millis(100);
    pair.proxy
        .set(Faults::none().delay(Way::ToServer, delay).delay(Way::ToClient, delay));
    let (mut client, mut server) = pair.connect().await;
    let begin = Instant::now();
    client.write_all(b"x").await.unwrap();
    exactly(&mut server, 1).await;
    assert!(begin.elapsed() >= delay);
    server.write_all(b"y").await.unwrap();
    exactly(&mut client, 1).await;
    assert!(begin.elapsed() >= delay * 2);

    // Sixty pieces side by side, not one after another.
    let content = pattern(7, 60 * 16 * 1024);
    let begin = Instant::now();
    let (_, found) = tokio::join!(client.write_all(&content), exactly(&mut server, content.len()));
    assert_same("what came later", &found, &content);
    let took = begin.elapsed();
    assert!(took >= delay && took < delay * 30, "{took:?}");
    assert!(pair.proxy.counts().delayed > 2);
}

#[tokio::test]
async fn a_plan_gives_each_connection_its_own_faults() {
    let pair = Pair::new().await;
    let mut number = 0;
    pair.proxy.set_each(move || {
        number += 1;
        Faults::none().end(Way::ToServer, number, Ending::Cut)
    });
    for expected in 1..=3 {
        let (mut client, mut server) = pair.connect().await;
        client.write_all(b"12345").await.unwrap();
        assert_eq!(rest(&mut server).await.len(), expected);
    }
}

#[tokio::test]
async fn without_a_server_a_client_is_reset_and_without_a_proxy_everybody_is() {
    let Pair { proxy, listener } = Pair::new().await;
    drop(listener);
    let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
    let told = within("the reset", LIMIT, client.read_u8()).await;
    assert_eq!(told.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!((proxy.counts().accepted, proxy.counts().unreachable), (1, 1));

    let pair = Pair::new().await;
    let (mut client, mut server) = pair.connect().await;
    drop(pair);
    assert_eq!(rest(&mut client).await, b"");
    assert_eq!(rest(&mut server).await, b"");
}
