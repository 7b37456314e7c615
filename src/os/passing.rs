//! Descriptors that go from process to process over Unix sockets (SCM_RIGHTS of unix(7)).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Most descriptors of one message: a device's queues, and what belongs to it.
pub const MAX_PASSED: usize = 32;

const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_PASSED));

/// Sends `bytes` with descriptors, at most [`MAX_PASSED`]; returns how many bytes left.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fds.len() > MAX_PASSED {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL;
    Ok(sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        flags,
    )?)
}

/// Receives into `bytes` and adds the descriptors that came to `fds`; returns how many bytes came.
///
/// Descriptors that are more than [`MAX_PASSED`] are closed by the kernel.
pub fn receive(socket: impl AsFd, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_is_passed_is_the_same_open_file() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut writer, reader) = UnixStream::pair().unwrap();

        let sent = send(&one, b"with it", &[reader.as_fd()]).unwrap();
        drop(reader);
        let (mut bytes, mut fds) = ([0; 64], Vec::new());
        let length = receive(&other, &mut bytes, &mut fds).unwrap();

        assert_eq!((sent, &bytes[..length]), (7, b"with it".as_slice()));
        writer.write_all(b"through").unwrap();
        let passed = UnixStream::from(fds.pop().unwrap());
        let length = receive(&passed, &mut bytes, &mut fds).unwrap();
        assert_eq!(&bytes[..length], b"through");
        assert!(fds.is_empty());
    }

    #[test]
    fn more_than_fit_are_refused() {
        let (one, _other) = UnixStream::pair().unwrap();
        let many = [one.as_fd(); MAX_PASSED + 1];

        assert!(send(&one, b"x", &many).is_err());
    }
}
