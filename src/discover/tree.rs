//! Which processes belong together: from a process up through its parents, as far as one server goes. Pure.

use std::collections::BTreeMap;

use super::facts::Process;

/// A server's processes are nested no deeper.
const DEEPEST: usize = 32;

/// Programs that start servers and are none: shells, terminals, and those that keep services and containers.
/// Compared with the whole name of a process, or, where they end in `*`, with its beginning.
const STARTERS: [&str; 47] = [
    "systemd",
    "(sd-pam)",
    "agft-serve",
    "init",
    "tini",
    "docker-init",
    "dumb-init",
    "catatonit",
    "containerd*",
    "dockerd",
    "conmon*",
    "crio",
    "kubelet",
    "runc",
    "s6-*",
    "runsv*",
    "supervisord",
    "monit",
    "pm2*",
    "cron",
    "crond",
    "atd",
    "sshd*",
    "login",
    "su",
    "sudo",
    "sh",
    "bash",
    "dash",
    "ash",
    "zsh",
    "fish",
    "ksh",
    "busybox",
    "tmux*",
    "screen",
    "SCREEN",
    "nohup",
    "setsid",
    "timeout",
    "make",
    "parallel",
    "xargs",
    "slurmd",
    "slurmstepd*",
    "pbs_mom",
    "sge_*",
];

/// Does this program only start others?
fn is_starter(name: &str) -> bool {
    STARTERS.iter().any(|starter| match starter.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == *starter,
    })
}

/// A process and the ancestors that may be of the same server, nearest first; empty for a process that is not
/// known.
///
/// The way ends at another control group (a service or a container has its own) and at a program that only
/// starts others.
pub(super) fn lineage(processes: &BTreeMap<u32, Process>, pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut next = pid;
    let mut child: Option<&Process> = None;
    while let Some(process) = processes.get(&next)
        && found.len() < DEEPEST
        && !found.contains(&next)
    {
        let belongs = child.is_none_or(|child| {
            // A parent that is younger is another process that was given the parent's id.
            process.start <= child.start && process.cgroup == child.cgroup && !is_starter(&process.name)
        });
        if !belongs {
            break;
        }
        found.push(next);
        child = Some(process);
        next = process.parent;
    }
    found
}

/// The last segment of a control group that holds one service or one container, and no more: then its
/// processes belong together whoever started them.
pub(super) fn is_of_one_service(cgroup: &str) -> bool {
    let last = cgroup.rsplit('/').next().unwrap_or_default();
    let hex = last.split(|c: char| !c.is_ascii_hexdigit()).map(str::len).max();
    (last.ends_with(".service") && !last.starts_with("user@")) || hex.is_some_and(|digits| digits >= 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_and_containers_have_a_group_of_their_own_and_sessions_do_not() {
        let id = "a".repeat(64);
        for one in [
            "/system.slice/vllm.service".to_owned(),
            format!("/docker/{id}"),
            format!("/system.slice/docker-{id}.scope"),
            format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
        ] {
            assert!(is_of_one_service(&one), "{one}");
        }
        for many in
            ["/user.slice/user-0.slice/session-3.scope", "/user.slice/user@1000.service", "/init.scope", ""]
        {
            assert!(!is_of_one_service(many), "{many}");
        }
    }

    #[test]
    fn the_way_up_ends_at_starters_other_groups_and_ids_given_anew() {
        let process = |parent, start, name: &str, cgroup: &str| Process {
            parent,
            start,
            name: name.to_owned(),
            cgroup: Some(cgroup.to_owned()),
            ..Process::default()
        };
        let processes = BTreeMap::from([
            (1, process(0, 0, "systemd", "a")),
            (10, process(1, 5, "bash", "a")),
            (20, process(10, 6, "python3", "a")),
            (30, process(20, 7, "python3", "a")),
            (40, process(30, 8, "python3", "b")),
            (50, process(60, 8, "python3", "a")),
            (60, process(50, 9, "python3", "a")),
            (70, process(1, 9, "python3", "a")),
        ]);
        let way = |pid| lineage(&processes, pid);
        assert_eq!((way(30), way(40), way(99)), (vec![30, 20], vec![40], vec![]));
        assert_eq!((way(50), way(60), way(70)), (vec![50], vec![60, 50], vec![70]));
    }
}
