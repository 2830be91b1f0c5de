use std::task::Waker;

use futures_util::FutureExt;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::base::operation::IMAGE_CROPPING;
use crate::base::picture::ImageFormat;

fn order(image: &[u8]) -> Order {
    Order {
        operation: &IMAGE_CROPPING,
        image: Bytes::copy_from_slice(image).into(),
        format: ImageFormat::Png,
        width: 7,
        height: 65535,
    }
}

fn poll(body: &mut FormBody) -> Poll<Option<Bytes>> {
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(body)
        .poll_frame(&mut cx)
        .map(|frame| frame.map(|frame| frame.expect("it is in memory").into_data().expect("a form is data")))
}

fn whole(form: &Form) -> Vec<u8> {
    let image = form.image.whole().expect("it is in memory");
    [&form.head, &image, &form.numbers, &form.tail].into_iter().flatten().copied().collect()
}

#[test]
fn a_form_has_three_parts_in_order() {
    let form = Form::with_boundary(&order(b"picture"), "b");
    assert_eq!(
        String::from_utf8(whole(&form)).unwrap(),
        "--b\r\nContent-Disposition: form-data; name=\"image\"; filename=\"image.png\"\r\n\
         Content-Type: image/png\r\n\r\npicture\r\n\
         --b\r\nContent-Disposition: form-data; name=\"width\"\r\n\r\n7\r\n\
         --b\r\nContent-Disposition: form-data; name=\"height\"\r\n\r\n65535\r\n--b--\r\n"
    );
    assert_eq!(form.content_type, "multipart/form-data; boundary=b");
    assert_eq!(form.tail, "65535\r\n--b--\r\n");
}

#[test]
fn the_image_goes_out_in_slices_and_uncopied() {
    const SLICE_BYTES: usize = 64 * 1024;
    let order = order(&[1; 3 * SLICE_BYTES + 5]);
    let (mut body, release, progress) = Form::with_boundary(&order, "b").into_body();
    let mut addresses = Vec::new();
    while let Poll::Ready(slice) = poll(&mut body) {
        let slice = slice.expect("the tail is still to come");
        assert!(!slice.is_empty() && slice.len() <= SLICE_BYTES);
        addresses.push(slice.as_ptr() as usize);
    }
    let image = order.image.whole().unwrap().as_ptr() as usize;
    assert_eq!(addresses[1..5], [0, 1, 2, 3].map(|index| image + index * SLICE_BYTES));
    assert!(!progress.is_held(), "nothing was flushed");
    assert!(poll(&mut body).is_pending() && !body.is_end_stream());
    release.send(()).expect("the body is there");
    assert_eq!(poll(&mut body), Poll::Ready(Some(Bytes::from("65535\r\n--b--\r\n"))));
    assert!(body.is_end_stream());
    assert_eq!(poll(&mut body), Poll::Ready(None));
}

#[test]
fn a_call_that_is_gone_never_lets_the_tail_go_nor_ends_the_body() {
    let (mut body, release, _) = Form::with_boundary(&order(b"x"), "b").into_body();
    drop(release);
    while let Poll::Ready(slice) = poll(&mut body) {
        assert!(!slice.expect("no end").starts_with(b"65535"));
    }
    assert!(!body.is_end_stream() && body.size_hint().lower() > 0);
}

#[test]
fn coming_to_the_tail_asks_to_be_polled_once_more() {
    struct Count(std::sync::atomic::AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let count = Arc::new(Count(Default::default()));
    let waker = Waker::from(count.clone());
    let mut cx = Context::from_waker(&waker);
    let (mut body, _release, _) = Form::with_boundary(&order(b"x"), "b").into_body();
    while Pin::new(&mut body).poll_frame(&mut cx).is_ready() {
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
    }
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert!(Pin::new(&mut body).poll_frame(&mut cx).is_pending());
    assert_eq!(count.0.load(Ordering::Relaxed), 1, "once is enough");
}

/// Takes all bytes; reads and shuts down never, and flushes if `is_flushed`.
struct Connection {
    is_flushed: bool,
    is_vectored: bool,
}

impl Read for Connection {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl Write for Connection {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_flushed { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn is_write_vectored(&self) -> bool {
        self.is_vectored
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }
}

#[test]
fn tail_is_held_once_the_connection_has_flushed_all_before_it() {
    let mut cx = Context::from_waker(Waker::noop());
    let progress = Arc::new(Progress::default());
    let connection = Connection { is_flushed: true, is_vectored: false };
    let mut watch = Watch::new(connection, progress.clone());
    for (at_tail, is_flushed, is_held) in [(false, true, false), (true, false, false), (true, true, true)] {
        progress.at_tail.store(at_tail, Ordering::Relaxed);
        watch.inner.is_flushed = is_flushed;
        assert_eq!(Pin::new(&mut watch).poll_flush(&mut cx).is_ready(), is_flushed);
        assert_eq!(progress.is_held(), is_held, "{at_tail}, {is_flushed}");
    }
}

#[test]
fn watched_connection_reads_and_writes_as_without_the_watch() {
    let mut cx = Context::from_waker(Waker::noop());
    for is_vectored in [true, false] {
        let connection = Connection { is_flushed: true, is_vectored };
        let mut watch = Watch::new(connection, Arc::default());
        let mut watch = Pin::new(&mut watch);
        assert_eq!(watch.is_write_vectored(), is_vectored);
        assert!(matches!(watch.as_mut().poll_write(&mut cx, b"abc"), Poll::Ready(Ok(3))));
        let two = [io::IoSlice::new(b"abc"), io::IoSlice::new(b"de")];
        assert!(matches!(watch.as_mut().poll_write_vectored(&mut cx, &two), Poll::Ready(Ok(5))));
        let mut bytes = hyper::rt::ReadBuf::new(&mut []);
        assert!(watch.as_mut().poll_read(&mut cx, bytes.unfilled()).is_pending());
        assert!(watch.as_mut().poll_shutdown(&mut cx).is_pending());
    }
}

#[test]
fn a_boundary_that_the_image_contains_is_drawn_again() {
    let hex = |byte: u8| format!("{byte:02x}").repeat(BOUNDARY_RANDOM_BYTES);
    let image = Bytes::from([b"\x89PNG", hex(1).as_bytes(), hex(2).as_bytes()].concat()).into();
    let mut draws = 0;
    let boundary = boundary_absent_from(&image, || {
        draws += 1;
        Ok([draws; BOUNDARY_RANDOM_BYTES])
    });
    assert_eq!(boundary.now_or_never().unwrap().unwrap(), hex(3));
    assert_eq!(draws, 3);
}

proptest! {
    #[test]
    fn a_boundary_is_fresh_and_not_in_the_image(image in any::<Vec<u8>>(), width: u16, height: u16) {
        let bytes = Bytes::from(image);
        let order =
            Order { operation: &IMAGE_CROPPING, image: bytes.clone().into(), format: ImageFormat::Bmp, width: width.into(), height: height.into() };
        let new = || Form::new(&order).now_or_never().expect("the image is in memory").unwrap();
        let form = new();
        let boundary = form.content_type.strip_prefix("multipart/form-data; boundary=").unwrap().as_bytes();
        prop_assert_eq!(boundary.len(), 48);
        prop_assert!(memchr::memmem::find(&bytes, boundary).is_none());
        prop_assert!(new().content_type != form.content_type);
        prop_assert_eq!(form.length, whole(&form).len() as u64);
    }
}
