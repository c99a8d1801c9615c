use std::os::fd::AsFd;

use super::*;
use crate::wait::{Ready, Waker, wait_readable};

fn collect(socket: &UdpSocket, want: usize) -> Vec<(SocketAddr, u8, Vec<u8>)> {
    let waker = Waker::new().unwrap();
    let mut batch = RecvBatch::default();
    let mut got = Vec::new();
    while got.len() < want {
        assert_eq!(wait_readable(&[socket.as_fd()], &waker).unwrap(), Ready::Readable(1));
        let n = socket.receive(&mut batch).unwrap();
        for i in 0..n {
            let train = batch.train(i).unwrap();
            for one in train.data.chunks(train.segment) {
                got.push((train.from, train.tos, one.to_vec()));
            }
        }
    }
    got
}

fn numbered(count: usize, size: usize, last: usize) -> Vec<u8> {
    let mut data = Vec::new();
    for i in 0..count {
        data.extend(std::iter::repeat_n(i as u8, if i + 1 == count { last } else { size }));
    }
    data
}

#[test]
fn a_segmented_send_arrives_as_the_datagrams_it_is_made_of() {
    for bind in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
        let a = UdpSocket::bind(bind.parse().unwrap(), false).unwrap();
        let b = UdpSocket::bind(bind.parse().unwrap(), false).unwrap();
        let mut targets = vec![b.local_addr().unwrap()];
        if targets[0].ip().is_unspecified() {
            let port = targets[0].port();
            targets = vec![([127, 0, 0, 1], port).into(), (Ipv6Addr::LOCALHOST, port).into()];
        }
        for to in targets {
            for gso in [true, false] {
                a.segmentation.store(gso, Ordering::Relaxed);
                let data = numbered(40, 1452, 77);
                a.send(&Transmit { to, data: &data, segment: 1452, tos: 1 }).unwrap();
                let got = collect(&b, 40);
                for (i, (from, tos, one)) in got.iter().enumerate() {
                    assert_eq!(from.ip(), to.ip(), "addresses are never IPv4-mapped");
                    assert_eq!(*tos, 1, "{bind} -> {to}");
                    assert_eq!(one.len(), if i == 39 { 77 } else { 1452 });
                    assert!(one.iter().all(|byte| *byte == i as u8));
                }
            }
        }
    }
}

#[test]
fn too_large_a_datagram_does_not_turn_segmentation_off() {
    let a = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let to = a.local_addr().unwrap();
    let before = a.offloads();
    let data = vec![0; 200_000];
    let error = a.send(&Transmit { to, data: &data, segment: 70_000, tos: 0 }).unwrap_err();
    assert_eq!(error.source.raw_os_error(), Some(libc::EMSGSIZE));
    assert_eq!(a.offloads(), before);
}

#[test]
fn fragmentable_datagrams_arrive_and_the_mode_is_restored() {
    let a = UdpSocket::bind("[::]:0".parse().unwrap(), false).unwrap();
    let b = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let to = b.local_addr().unwrap();
    a.send_fragmentable(to, &[7; 9000], 0).unwrap();
    assert_eq!(collect(&b, 1)[0].2, vec![7; 9000]);
    let mut value = 0i32;
    let mut size = size_of::<i32>() as libc::socklen_t;
    // SAFETY: value and size outlive the call and describe each other.
    let done = unsafe {
        libc::getsockopt(
            a.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw mut value).cast(),
            &raw mut size,
        )
    };
    assert_eq!((done, value), (0, libc::IP_PMTUDISC_PROBE));
}

#[test]
fn a_taken_port_is_named() {
    let a = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
    let taken = a.local_addr().unwrap();
    assert!(matches!(UdpSocket::bind(taken, false), Err(BindError::PortTaken(at)) if at == taken));
    assert!(matches!(
        UdpSocket::bind("192.0.2.1:0".parse().unwrap(), false),
        Err(BindError::NoSuchAddress(_))
    ));
}

#[test]
fn sockets_of_one_process_share_a_port() {
    let a = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), true).unwrap();
    UdpSocket::bind(a.local_addr().unwrap(), true).unwrap();
}
