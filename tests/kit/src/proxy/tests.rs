use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::*;

/// Sends back everything it gets, and ends when the client does.
struct Echo {
    address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

async fn echo() -> Echo {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
                write.shutdown().await.ok();
            });
        }
    });
    Echo { address, _task: AbortOnDropHandle::new(task) }
}

async fn before_an_echo() -> (FaultProxy, Echo) {
    let echo = echo().await;
    (FaultProxy::start(&format!("http://{}/", echo.address)).await, echo)
}

async fn dial(proxy: &FaultProxy) -> TcpStream {
    TcpStream::connect(proxy.address).await.unwrap()
}

/// What comes back of `sent`, and how that ends.
async fn exchange(stream: &mut TcpStream, sent: &[u8]) -> (Vec<u8>, Option<ErrorKind>) {
    let (mut read, mut write) = stream.split();
    let mut came = Vec::new();
    let send = async {
        write.write_all(sent).await.ok();
        write.shutdown().await.ok();
    };
    let (result, ()) = tokio::join!(read.read_to_end(&mut came), send);
    (came, result.err().map(|error| error.kind()))
}

fn counted(to_server: u64, to_client: u64, ending: Ending) -> Traffic {
    Traffic { to_server, to_client, ending: Some(ending) }
}

#[tokio::test]
async fn without_a_fault_everything_passes_and_is_counted() {
    let (proxy, _echo) = before_an_echo().await;
    let sent: Vec<u8> = (0..300_000_u32).map(|at| at.to_le_bytes()[0]).collect();
    for _ in 0..2 {
        assert!(exchange(&mut dial(&proxy).await, &sent).await == (sent.clone(), None));
    }
    assert_eq!(proxy.wait_for_idle().await, [counted(300_000, 300_000, Ending::Finished); 2]);
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn a_cut_comes_after_exactly_so_many_bytes_in_either_direction() {
    let (proxy, _echo) = before_an_echo().await;
    let sent = [7; 100_000];
    for at in [0, 1, 1000, 65_536, 99_999] {
        proxy.on_next(Plan::clean().to_client(Fault::Cut(at)));
        let (came, error) = exchange(&mut dial(&proxy).await, &sent).await;
        assert_eq!((came.len() as u64, error), (at, None));
        let all = proxy.wait_for_idle().await;
        assert_eq!((all.last().unwrap().to_client, all.last().unwrap().ending), (at, Some(Ending::Cut)));

        proxy.on_next(Plan::clean().to_server(Fault::Cut(at)));
        let (came, error) = exchange(&mut dial(&proxy).await, &sent).await;
        assert!(came.len() as u64 <= at && error.is_none(), "{} of {at}: {error:?}", came.len());
        let all = proxy.wait_for_idle().await;
        assert_eq!((all.last().unwrap().to_server, all.last().unwrap().ending), (at, Some(Ending::Cut)));
    }
    // One that is never reached does nothing.
    proxy.on_next(Plan::clean().to_server(Fault::Cut(100_001)));
    assert_eq!(exchange(&mut dial(&proxy).await, &sent).await.0.len(), 100_000);
    assert_eq!(proxy.wait_for_idle().await.last(), Some(&counted(100_000, 100_000, Ending::Finished)));
}

#[tokio::test]
async fn a_reset_is_one_for_both_sides() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = FaultProxy::start(&listener.local_addr().unwrap().to_string()).await;
    proxy.on_next(Plan::clean().to_server(Fault::Reset(10)));
    let mut client = dial(&proxy).await;
    let mut server = listener.accept().await.unwrap().0;
    client.write_all(&[1; 50]).await.unwrap();
    let mut came = Vec::new();
    let error = server.read_to_end(&mut came).await.unwrap_err();
    assert_eq!((came.len(), error.kind()), (10, ErrorKind::ConnectionReset));
    assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.wait_for_idle().await, [counted(10, 0, Ending::Reset)]);

    // And a client's own reaches the server.
    let client = dial(&proxy).await;
    let mut server = listener.accept().await.unwrap().0;
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(server.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_stalls_stands_still_until_somebody_leaves() {
    let (proxy, _echo) = before_an_echo().await;
    for plan in [Plan::clean().to_client(Fault::Stall(3)), Plan::clean().to_server(Fault::Stall(3))] {
        proxy.on_next(plan);
        let mut client = dial(&proxy).await;
        client.write_all(b"abcdef").await.unwrap();
        let mut came = [0; 3];
        client.read_exact(&mut came).await.unwrap();
        assert_eq!(&came, b"abc");
        let more = timeout(Duration::from_millis(50), client.read(&mut came)).await;
        assert!(more.is_err(), "{more:?}");
        assert_eq!(proxy.traffic().last().unwrap().ending, None);
        drop(client);
        assert_eq!(proxy.wait_for_idle().await.last().unwrap().to_client, 3);
    }
}

#[tokio::test]
async fn a_sender_into_a_stall_is_held_back() {
    let (proxy, _echo) = before_an_echo().await;
    proxy.on_next(Plan::clean().to_server(Fault::Stall(1)));
    let mut client = dial(&proxy).await;
    // More than all buffers on the way together.
    let sent = timeout(Duration::from_millis(300), client.write_all(&vec![0; 64 << 20])).await;
    assert!(sent.is_err());
    assert_eq!(proxy.traffic()[0].to_server, 1);
}

#[tokio::test]
async fn one_bit_of_one_byte_is_turned() {
    let (proxy, _echo) = before_an_echo().await;
    for at in [0, 5, 69_999] {
        let mut expected = vec![b'a'; 70_000];
        expected[at] ^= 1;
        for plan in [
            Plan::clean().to_server(Fault::Corrupt(at as u64)),
            Plan::clean().to_client(Fault::Corrupt(at as u64)),
        ] {
            proxy.on_next(plan);
            assert!(exchange(&mut dial(&proxy).await, &[b'a'; 70_000]).await.0 == expected, "{at}");
        }
    }
}

#[tokio::test]
async fn a_delay_delays_and_plans_are_taken_in_order() {
    let (proxy, _echo) = before_an_echo().await;
    let time = Duration::from_millis(80);
    proxy.on_next(Plan::clean().to_server(Fault::Delay(time)).to_client(Fault::Delay(time)));
    proxy.always(Plan::clean().to_client(Fault::Cut(0)));
    let begun = Instant::now();
    assert_eq!(exchange(&mut dial(&proxy).await, b"hello").await.0, b"hello");
    assert!(begun.elapsed() >= 2 * time, "{:?}", begun.elapsed());
    for _ in 0..2 {
        assert_eq!(exchange(&mut dial(&proxy).await, b"hello").await.0, b"");
    }
    proxy.always(Plan::clean());
    assert_eq!(exchange(&mut dial(&proxy).await, b"hello").await.0, b"hello");
}

#[tokio::test]
async fn what_is_open_can_be_held_and_ended() {
    let (proxy, _echo) = before_an_echo().await;
    let mut came = [0; 5];
    for (ending, kind) in [(Ending::Cut, None), (Ending::Reset, Some(ErrorKind::ConnectionReset))] {
        let mut client = dial(&proxy).await;
        client.write_all(b"hello").await.unwrap();
        client.read_exact(&mut came).await.unwrap();
        proxy.hold(true);
        client.write_all(b"again").await.unwrap();
        assert!(timeout(Duration::from_millis(50), client.read(&mut came)).await.is_err());
        proxy.hold(false);
        client.read_exact(&mut came).await.unwrap();
        assert_eq!(&came, b"again");
        proxy.end_all(ending);
        let end = client.read(&mut came).await;
        assert_eq!(
            (end.as_ref().ok(), end.as_ref().err().map(std::io::Error::kind)),
            (kind.map_or(Some(&0), |_| None), kind)
        );
        drop(client);
        assert_eq!(proxy.wait_for_idle().await.last(), Some(&counted(10, 10, ending)));
    }
    // It ended what was open, and not what comes.
    assert_eq!(exchange(&mut dial(&proxy).await, b"hello").await.0, b"hello");
}

#[tokio::test]
async fn it_goes_down_and_comes_back_and_a_missing_server_is_a_reset() {
    let (mut proxy, echo) = before_an_echo().await;
    let mut client = dial(&proxy).await;
    client.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    proxy.go_down().await;
    assert!(matches!(client.read(&mut [0]).await, Ok(0) | Err(_)));
    assert_eq!(TcpStream::connect(proxy.address).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    proxy.come_back().await;
    assert_eq!(exchange(&mut dial(&proxy).await, b"hello").await.0, b"hello");
    drop(echo);
    let mut client = dial(&proxy).await;
    assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.wait_for_idle().await.last().unwrap().ending, Some(Ending::Refused));
}
