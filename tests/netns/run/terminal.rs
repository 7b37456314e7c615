//! A program under `agentnet run` has the terminal of its caller: size, keys, job control, hang-up.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::{
    lab::Lab,
    process::Output,
    run::{USER, job::joined, wait_for_the_end},
    world::{Host, World, in_world, wait_for},
};

/// Has a command as a session of its own at a terminal, and does there what its second argument says.
/// It waits for each fact, and fails after 20 s; what it saw it prints.
const DRIVER: &str = r#"
import fcntl, json, os, pty, re, select, struct, sys, termios, time

line, steps = sys.argv[1], json.loads(sys.argv[2])
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("sh", ["sh", "-c", "stty rows 24 cols 80; exec " + line])
seen, at = "", 0

def fail(what):
    print(seen)
    print("FAILED:", what)
    print(os.popen("ps -e -o pid,ppid,pgid,sid,tpgid,stat,args").read())
    os.kill(pid, 9)
    sys.exit(1)

def expect(pattern):
    global seen, at
    end = time.monotonic() + 20
    while True:
        found = re.compile(pattern).search(seen, at)
        if found:
            at = found.end()
            return
        ready = select.select([terminal], [], [], max(0, end - time.monotonic()))[0]
        if not ready:
            fail("not seen: " + pattern)
        try:
            piece = os.read(terminal, 4096)
        except OSError:
            piece = b""
        if not piece:
            fail("closed before: " + pattern)
        seen += piece.decode(errors="replace").replace("\r", "")

def ended():
    end = time.monotonic() + 20
    while time.monotonic() < end:
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    fail("it does not end")

def in_front(command):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with open(f"/proc/{os.tcgetpgrp(terminal)}/cmdline") as file:
            if file.read().replace("\0", " ").startswith(command):
                return
        time.sleep(0.01)
    fail("not in the foreground: " + command)

for step in steps:
    (what, value), = step.items()
    if what == "see":
        expect(value)
    elif what == "type":
        os.write(terminal, value.encode())
    elif what == "size":
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *value, 0, 0))
    elif what == "in front":
        in_front(value)
    elif what == "hang up":
        os.close(terminal)
    elif what == "end":
        code = ended()
        if code != value:
            fail(f"ended by {code}")
print(seen)
print("all seen")
"#;

/// Says when it begins and when it is continued. (A shell that begins programs may be stopped in the
/// middle of that, vfork(2), and the terminal's key then stops half of it, run by whomever.)
const JOB: &str = r#"
import signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGCONT, lambda *_: print("went on"))
print("begun")
while True:
    signal.pause()
"#;

/// Does `steps` at a terminal where `line` runs.
fn at_terminal(host: &Host, line: &str, steps: &[Value]) -> Output {
    fs::write(World::path("terminal.py"), DRIVER).unwrap();
    fs::write(World::path("line"), line).unwrap();
    fs::write(World::path("steps"), serde_json::to_string(steps).unwrap()).unwrap();
    let driver = "exec python3 /mnt/terminal.py \"$(cat /mnt/line)\" \"$(cat /mnt/steps)\"";
    host.start(driver).finish(Duration::from_secs(60))
}

#[track_caller]
fn sees_all(host: &Host, line: &str, steps: &[Value]) {
    let ran = at_terminal(host, line, steps);
    assert!(
        ran.code == 0 && ran.stdout.ends_with("all seen\n"),
        "{line}: {ran}"
    );
}

/// Issue 6: the terminal is the program's: it knows it and its size, hears of another size, and is
/// ended by the terminal's key.
#[test]
fn the_terminal_is_the_programs() {
    in_world(|world| {
        let lab = Lab::services(world);
        let a = joined(&lab);
        let run = format!("{USER} agentnet run --state /mnt/a --");
        let program = "trap \"stty size\" WINCH; tty; stty size; echo begun; \
                       while :; do sleep 0.1; done";

        let steps = [
            json!({"see": "/dev/pts/[0-9]+\n24 80\nbegun\n"}),
            json!({"size": [33, 99]}),
            json!({"see": "33 99\n"}),
            json!({"type": "\u{3}"}),
            // By the signal, as the program was: a negative code here, 130 in a shell.
            json!({"end": -2}),
        ];
        sees_all(a, &format!("{run} sh -c '{program}'"), &steps);

        // What is typed goes to it alone, and the end of input too.
        let steps = [
            json!({"type": "typed\n"}),
            json!({"see": "it was typed\n"}),
            json!({"type": "\u{4}"}),
            json!({"see": "no more\n"}),
            json!({"end": 4}),
        ];
        let program = "while read -r line; do echo it was $line; done; echo no more; exit 4";
        sees_all(a, &format!("{run} sh -c '{program}'"), &steps);
        wait_for_the_end(a);
    });
}

/// Issue 6: a shell treats it as one job: stopped by the key, continued, its exit code told.
#[test]
fn a_shell_stops_and_continues_it() {
    in_world(|world| {
        let lab = Lab::services(world);
        let a = joined(&lab);
        let run = format!("{USER} agentnet run --state /mnt/a --");
        fs::write(World::path("job.py"), JOB).unwrap();

        let steps = [
            json!({"see": "[$#] "}),
            json!({"type": format!("{run} python3 /mnt/job.py\n")}),
            json!({"see": "begun\n"}),
            json!({"type": "\u{1a}"}),
            json!({"see": "Stopped"}),
            json!({"type": "fg\n"}),
            json!({"see": "went on\n"}),
            json!({"type": "\u{1a}"}),
            json!({"see": "Stopped"}),
            json!({"type": "bg\n"}),
            // The shell's prompt may come before the end of its line.
            json!({"see": "went on"}),
            json!({"type": "fg\n"}),
            // The shell says what it continues before it gives the terminal away.
            json!({"in front": "agentnet run "}),
            json!({"type": "\u{3}"}),
            json!({"see": "[$#] "}),
            json!({"type": "echo co\"\"de $?\n"}),
            json!({"see": "code 130\n"}),
            json!({"type": "exit\n"}),
            json!({"end": 0}),
        ];
        sees_all(a, "sh -mi", &steps);
        wait_for_the_end(a);
    });
}

/// Issue 6: when the terminal goes away, whatever began it, nothing of it stays.
#[test]
fn it_ends_when_the_terminal_hangs_up() {
    in_world(|world| {
        let lab = Lab::services(world);
        let a = joined(&lab);
        let run = format!("{USER} agentnet run --state /mnt/a --");
        let program = "echo be\"\"gun; while :; do sleep 0.1; done";

        // The kernel tells the first process of a session alone.
        let steps = [
            json!({"see": "begun\n"}),
            json!({"hang up": true}),
            json!({"end": -1}),
        ];
        sees_all(a, &format!("{run} sh -c '{program}'"), &steps);
        wait_for_the_end(a);

        // One that has the terminal for a group of its own.
        let steps = [
            json!({"see": "[$#] "}),
            json!({"type": format!("sh -c '{program}'\n")}),
            json!({"see": "begun\n"}),
            json!({"hang up": true}),
        ];
        sees_all(a, &format!("{run} sh -mi"), &steps);
        wait_for_the_end(a);
        wait_for("its program too", || a.run("pgrep -x sleep").code == 1);
    });
}
