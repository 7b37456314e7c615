//! Answers agents that look for a gateway on a link of this host.

use std::{io, net::SocketAddr};

use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use crate::gateway::server::GatewayCommand;
use crate::os::link::Links;
use crate::os::multicast;
use crate::wire::discover::{DISCOVER, GROUP, PORT};

/// Serves the links there are until the gateway is gone.
pub(super) async fn listen(commands: mpsc::Sender<GatewayCommand>) {
    if let Err(error) = serve(&commands).await {
        warn!(%error, "Agents on the links of this host are not answered");
    }
}

async fn serve(commands: &mpsc::Sender<GatewayCommand>) -> io::Result<()> {
    let mut links = Links::open().map_err(io::Error::other)?;
    let socket = multicast::bind_port(PORT)?;
    multicast::join(&socket, GROUP)?;
    let joining = socket.try_clone()?;
    let socket = UdpSocket::from_std(socket)?;
    // One byte more, so that what is too long is seen to be.
    let mut buffer = [0; DISCOVER + 1];
    loop {
        tokio::select! {
            got = socket.recv_from(&mut buffer) => match got {
                Ok((length, from)) => {
                    let asked = buffer.get(..length).unwrap_or_default().to_vec();
                    if !answer(&socket, commands, from, asked).await {
                        return Ok(());
                    }
                }
                Err(error) => debug!(%error, "Nothing received"),
            },
            is_watched = links.changed() => {
                links.forget();
                multicast::join(&joining, GROUP)?;
                if !is_watched {
                    return Err(io::Error::other("changes of network are not told any more"));
                }
            }
        }
    }
}

/// Lets the gateway answer; false when it is gone.
async fn answer(
    socket: &UdpSocket,
    commands: &mpsc::Sender<GatewayCommand>,
    from: SocketAddr,
    asked: Vec<u8>,
) -> bool {
    let (answer, answered) = oneshot::channel();
    let command = GatewayCommand::Discover(from, asked, answer);
    if commands.send(command).await.is_err() {
        return false;
    }
    // Without an answer there is nothing to say.
    if let Ok(offer) = answered.await
        && let Err(error) = socket.send_to(&offer, from).await
    {
        debug!(%error, "Offer not sent");
    }
    true
}
