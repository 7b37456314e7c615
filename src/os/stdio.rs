//! Standard input and output joined to a connection, for `agentnet connect`; where standard error leads.

use std::{
    fs::File,
    io::{self, ErrorKind, IsTerminal, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    sync::Arc,
    thread,
};

use nix::unistd::dup2_stdout;
use thiserror::Error;
use tokio::sync::mpsc;

/// Read at once in each direction.
const PIECE: usize = 64 * 1024; // bytes

/// What broke off before both ends had said all.
#[derive(Debug, Error)]
pub enum StdioError {
    #[error("the connection broke: {0}")]
    Connection(#[source] io::Error),
    #[error("cannot read standard input: {0}")]
    Input(#[source] io::Error),
    #[error("cannot write to standard output: {0}")]
    Output(#[source] io::Error),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    In,
    Out,
}

/// A failed copy, by the end at fault.
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

/// Tells whether standard error is the file `at`: its device and inode as JOURNAL_STREAM has them
/// (systemd.exec(5)). A program started by another may have inherited the variable and not the stream.
pub fn error_leads_to(at: &str) -> bool {
    let is_at = |of: rustix::fs::Stat| format!("{}:{}", of.st_dev, of.st_ino) == at;
    rustix::fs::fstat(io::stderr()).is_ok_and(is_at)
}

/// Joins standard input and output to a connection, until both ends have said all. The end of input is
/// told to the other end, which may go on talking, and the other way round.
///
/// Threads do it, since a read of a terminal cannot be taken back; one that still reads when this returns
/// ends with the process.
pub async fn join(stream: tokio::net::TcpStream) -> Result<(), StdioError> {
    let stream = stream.into_std().and_then(|stream| {
        stream.set_nonblocking(false)?;
        // What is typed goes at once.
        stream.set_nodelay(true)?;
        Ok(Arc::new(stream))
    });
    let stream = stream.map_err(StdioError::Connection)?;
    let (tell, mut told) = mpsc::channel(2);
    let (other, tell_in) = (Arc::clone(&stream), tell.clone());
    // Whoever does not listen any more has heard of the first failure.
    thread::spawn(move || drop(tell_in.blocking_send((Way::In, send(&other)))));
    thread::spawn(move || drop(tell.blocking_send((Way::Out, receive(&stream)))));
    for _ in 0..2 {
        let Some((way, done)) = told.recv().await else {
            break;
        };
        done?;
        // The other end has closed; nobody should have to press Ctrl-D to see it.
        if way == Way::Out && io::stdin().is_terminal() {
            break;
        }
    }
    Ok(())
}

fn send(stream: &TcpStream) -> Result<(), StdioError> {
    copy(&mut io::stdin().lock(), &mut &*stream).map_err(|broken| match broken {
        Broken::Source(error) => StdioError::Input(error),
        Broken::Sink(error) => StdioError::Connection(error),
    })?;
    match stream.shutdown(Shutdown::Write) {
        // The other end has closed too.
        Err(error) if error.kind() == ErrorKind::NotConnected => Ok(()),
        done => done.map_err(StdioError::Connection),
    }
}

fn receive(stream: &TcpStream) -> Result<(), StdioError> {
    // Past the standard library's buffer, which waits for the end of a line.
    let out = io::stdout().as_fd().try_clone_to_owned();
    let mut out = File::from(out.map_err(StdioError::Output)?);
    copy(&mut &*stream, &mut out).map_err(|broken| match broken {
        Broken::Source(error) => StdioError::Connection(error),
        Broken::Sink(error) => StdioError::Output(error),
    })?;
    // Whoever reads our output sees its end now, not when our input ends.
    let nothing = File::options().write(true).open("/dev/null");
    let closed = nothing.and_then(|nothing| Ok(dup2_stdout(nothing)?));
    closed.map_err(StdioError::Output)
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<(), Broken> {
    let mut piece = vec![0; PIECE];
    loop {
        let read = match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(Broken::Source(error)),
        };
        let part = piece.get(..read).unwrap_or_default();
        to.write_all(part).map_err(Broken::Sink)?;
    }
}
