use clap::Args;

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::output::Show;
use crate::cli::secret::JoinTokenArg;
use crate::cli::values::user;
use crate::config::Flags;
use crate::engine::placement::Placement;
use crate::id::MemberName;
use crate::node::alone;
use crate::os::clock;
use crate::statement::token::JoinToken;
use crate::wire::api::local::{JoinRequest, Joined};
use crate::wire::binding::{Binding, CgroupPath};

/// Join a network by a token
#[derive(Args, Debug)]
#[command(mut_arg("token_file", |token| token.help(
    "Read the join token from FILE, or from standard input when it is - [env: AGENTNET_TOKEN \
     carries the token itself]"
)))]
pub(super) struct JoinArgs {
    #[command(flatten)]
    token: JoinTokenArg,

    /// Take this name [default: the token's, when it allows but one]
    #[arg(long, value_name = "NAME")]
    name: Option<MemberName>,

    /// Give the agent no device on this host: programs have it by `agentnet run --agent NAME`
    #[arg(long)]
    apart: bool,

    /// Let programs of this user have it too, by name or number [default: of root and of group agentnet]
    #[arg(long, value_name = "USER", value_parser = user)]
    user: Option<u32>,

    /// Keep the agent on this host for programs of this user, by name or number
    #[arg(long, value_name = "USER", value_parser = user, conflicts_with_all = ["apart", "bind_cgroup"])]
    bind_user: Option<u32>,

    /// Keep the agent on this host for programs of this control group and those below it, by its path as in
    /// /proc/PID/cgroup
    #[arg(long, value_name = "PATH", conflicts_with = "apart")]
    bind_cgroup: Option<CgroupPath>,
}

impl JoinArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let user = self.bind_user.map(Binding::User);
        let bound = user.or_else(|| self.bind_cgroup.map(Binding::Cgroup));
        let request = JoinRequest {
            token: self.token.secret()?.read()?,
            name: self.name,
            apart: self.apart,
            user: self.user,
            bound,
        };
        let client = context.client()?;
        let joined = if client.is_up() {
            client.post::<Joined>("/v1/join", &request).await?
        } else {
            let token = request.token.parse::<JoinToken>()?;
            let config = context.node_config(Flags::default())?;
            let placement = Placement {
                apart: request.apart,
                user: request.user,
                bound: request.bound,
            };
            alone::join(&config, &token, request.name, placement, clock::unix()).await?
        };
        context.out.done(&joined)
    }
}

impl Show for Joined {
    fn show(&self) -> String {
        let next = if self.running {
            "agentnet trust request NAME"
        } else {
            "agentnet up"
        };
        format!(
            "joined {} as {}\n  {:<12}{}\n  {:<12}{}\n  {:<12}{next}",
            self.network, self.name, "address", self.address, "id", self.id, "next",
        )
    }
}
