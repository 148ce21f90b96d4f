//! Machines as facts: who is a candidate, where it listens, and which server each process works for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::behind::{Unplaced, gpus_behind};
use super::candidates::candidates;
use super::facts::{Facts, GpuProcesses, Process, Socket};
use super::page::Recognised;
use super::servers::{Found, Page, Pages, is_settled, servers};

const HOST: u64 = 1;
const CONTAINER: u64 = 2;
const SESSION: &str = "/user.slice/user-1000.slice/session-3.scope";

fn docker(letter: &str) -> String {
    format!("/system.slice/docker-{}.scope", letter.repeat(64))
}

/// A machine with an address on a network and a container's network beside it.
struct Machine(Facts);

impl Machine {
    fn new() -> Self {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let addresses =
            [(HOST, ips(&["127.0.0.1", "192.0.2.2"])), (CONTAINER, ips(&["127.0.0.1", "172.17.0.2"]))];
        let machine =
            Self(Facts { netns: Some(HOST), addresses: BTreeMap::from(addresses), ..Facts::default() });
        machine.process(1, 0, "systemd", "/init.scope").process(900, 1, "bash", SESSION)
    }

    fn process(mut self, pid: u32, parent: u32, name: &str, cgroup: &str) -> Self {
        let process = Process {
            parent,
            start: u64::from(pid),
            name: name.to_owned(),
            cgroup: Some(cgroup.to_owned()),
            ..Process::default()
        };
        self.0.processes.insert(pid, process);
        self
    }

    fn listens(mut self, netns: u64, address: &str, owners: &[u32]) -> Self {
        let inode = 1000 + self.0.sockets.len() as u64;
        let owners = owners.iter().copied().collect();
        self.0.sockets.push(Socket { inode, netns, listens: address.parse().unwrap(), owners });
        self
    }

    fn gpu(mut self, uuid: &str, pids: &[u32]) -> Self {
        self.0.gpus.push(GpuProcesses { uuid: uuid.to_owned(), pids: pids.to_vec() });
        self
    }

    /// The addresses of each candidate, in order, with the processes that compute.
    fn candidates(&self) -> Vec<(Vec<u32>, Vec<String>)> {
        let found = candidates(&self.0).candidates.into_iter().map(|candidate| {
            let reach = |reach: Vec<SocketAddr>| reach[0].to_string();
            let shown = candidate.addresses.iter().map(|address| {
                address.reach.clone().map_or_else(|_| format!("{} not reached", address.listens), reach)
            });
            (candidate.pids.iter().copied().collect(), shown.collect())
        });
        found.collect()
    }

    /// The servers, with a page of vLLM at these ports.
    fn servers(&self, ports: &[(u16, &str)]) -> Vec<Found> {
        let mut pages = Pages::new();
        for socket in &self.0.sockets {
            for (port, model) in ports.iter().filter(|(port, _)| *port == socket.listens.port()) {
                let engine = Recognised { engine: crate::engine::usual(), models: vec![(*model).to_owned()] };
                let at = self.0.reach(socket).unwrap()[0];
                let page = Page { url: format!("http://{at}/metrics"), port: *port, engine };
                pages.insert(socket.inode, page);
            }
        }
        servers(&self.0, &candidates(&self.0).candidates, &pages)
    }

    fn behind(&self, address: &str) -> Result<String, Unplaced> {
        gpus_behind(&self.0, &[address.parse().unwrap()]).map(|gpus| gpus.join(" "))
    }
}

fn shown(found: &[Found]) -> Vec<String> {
    let one = |found: &Found| {
        let gpus = found.gpus.join(" ");
        let shared = if found.shared.is_empty() { "" } else { ", shared" };
        format!("{} {} on {gpus} by {:?}{shared}", found.name, found.metrics_url, found.pids)
    };
    found.iter().map(one).collect()
}

/// vLLM with four GPUs: the API server computes nothing; the workers listen for one another.
fn tensor_parallel() -> Machine {
    let machine = Machine::new()
        .process(1000, 900, "vllm", SESSION)
        .process(1001, 1000, "VLLM::EngineCor", SESSION)
        .listens(HOST, "0.0.0.0:8000", &[1000])
        .listens(HOST, "127.0.0.1:41234", &[1001]);
    (0..4).fold(machine, |machine, rank| {
        let pid = 1002 + rank;
        machine
            .process(pid, 1001, "VLLM::Worker", SESSION)
            .listens(HOST, &format!("127.0.0.1:{}", 42_000 + rank), &[pid])
            .gpu(&format!("G{rank}"), &[pid])
    })
}

#[test]
fn tensor_parallel_workers_are_one_server_and_its_api_port_is_asked_first() {
    let machine = tensor_parallel();
    let addresses = ["127.0.0.1:8000", "127.0.0.1:41234", "127.0.0.1:42000 not reached"];
    let [(pids, asked)] = &machine.candidates()[..] else { panic!("{:?}", machine.candidates()) };
    assert_eq!(
        (pids.as_slice(), &asked[..3]),
        (&[1002, 1003, 1004, 1005][..], &addresses.map(str::to_owned)[..])
    );
    let found = machine.servers(&[(8000, "Qwen/Qwen2-7B")]);
    let wanted = "qwen2-7b http://127.0.0.1:8000/metrics on G0 G1 G2 G3 by [1002, 1003, 1004, 1005]";
    assert_eq!((shown(&found), found[0].process), (vec![wanted.to_owned()], (1000, 1000)));
    assert_eq!(machine.behind("127.0.0.1:8000"), Ok("G0 G1 G2 G3".to_owned()));
    assert_eq!(machine.behind("192.0.2.2:8000"), Ok("G0 G1 G2 G3".to_owned()));
}

#[test]
fn once_the_api_server_has_a_page_the_lines_between_workers_are_left_alone() {
    let machine = tensor_parallel();
    let candidate = &candidates(&machine.0).candidates[0];
    let engine = Recognised { engine: crate::engine::usual(), models: vec![] };
    let page = |socket| Pages::from([(socket, Page { url: String::new(), port: 1, engine: engine.clone() })]);
    let of_api_server = candidate.addresses[0].socket;
    assert!(is_settled(&machine.0, candidate, &page(of_api_server)));
    assert!(!is_settled(&machine.0, candidate, &Pages::new()));
    assert!(!is_settled(&machine.0, candidate, &page(candidate.addresses[2].socket)));
}

#[test]
fn before_the_api_server_listens_its_workers_are_not_asked() {
    let machine = Machine::new()
        .process(1000, 900, "vllm", SESSION)
        .process(1001, 1000, "VLLM::EngineCor", SESSION)
        .listens(HOST, "127.0.0.1:42000", &[1001])
        .gpu("G0", &[1001]);
    assert_eq!(machine.candidates(), [(vec![1001], vec!["127.0.0.1:42000 not reached".to_owned()])]);
}

#[test]
fn several_api_servers_that_share_a_socket_are_one_server() {
    let machine = Machine::new()
        .process(1000, 900, "vllm", SESSION)
        .process(1001, 1000, "APIServer_0", SESSION)
        .process(1002, 1000, "APIServer_1", SESSION)
        .process(1003, 1000, "EngineCore_0", SESSION)
        .process(1004, 1000, "EngineCore_1", SESSION)
        .listens(HOST, "[::]:8000", &[1000, 1001, 1002])
        .gpu("G0", &[1003])
        .gpu("G1", &[1004]);
    let found = machine.servers(&[(8000, "m")]);
    assert_eq!(shown(&found), ["m http://127.0.0.1:8000/metrics on G0 G1 by [1003, 1004]"]);
    assert_eq!(found[0].process.0, 1000);
}

#[test]
fn a_container_on_the_hosts_network_and_one_on_a_bridge() {
    let machine = |netns| {
        Machine::new()
            .process(500, 1, "containerd-shim", "/system.slice/containerd.service")
            .process(1000, 500, "python3", &docker("a"))
            .process(1001, 1000, "VLLM::EngineCor", &docker("a"))
            .process(600, 1, "docker-proxy", "/system.slice/docker.service")
            .listens(netns, "0.0.0.0:8000", &[1000])
            .gpu("G0", &[1001])
    };
    assert_eq!(
        shown(&machine(HOST).servers(&[(8000, "m")])),
        ["m http://127.0.0.1:8000/metrics on G0 by [1001]"]
    );
    let mut bridged = machine(CONTAINER);
    assert_eq!(shown(&bridged.servers(&[(8000, "m")])), ["m http://172.17.0.2:8000/metrics on G0 by [1001]"]);
    assert_eq!(bridged.behind("172.17.0.2:8000"), Ok("G0".to_owned()));
    // The port that Docker publishes is its proxy's, which leads on.
    assert_eq!(bridged.behind("127.0.0.1:80"), Err(Unplaced::Nobody("127.0.0.1:80".to_owned())));
    let leads = Some(("0.0.0.0:80".parse().unwrap(), "172.17.0.2:8000".parse().unwrap()));
    bridged.0.processes.get_mut(&600).unwrap().leads = leads;
    assert_eq!(bridged.behind("127.0.0.1:80"), Ok("G0".to_owned()));
}

#[test]
fn a_container_that_listens_on_its_own_loopback_is_not_reached() {
    let machine = Machine::new()
        .process(1000, 500, "llama-server", &docker("a"))
        .listens(CONTAINER, "127.0.0.1:8080", &[1000])
        .gpu("G0", &[1000]);
    assert_eq!(machine.candidates(), [(vec![1000], vec!["127.0.0.1:8080 not reached".to_owned()])]);
}

#[test]
fn llama_server_computes_and_listens_itself() {
    let machine = Machine::new()
        .process(1000, 900, "llama-server", SESSION)
        .listens(HOST, "127.0.0.1:50123", &[1000])
        .gpu("G0", &[1000])
        .gpu("G1", &[1000]);
    assert_eq!(machine.candidates(), [(vec![1000], vec!["127.0.0.1:50123".to_owned()])]);
    assert_eq!(machine.behind("127.0.0.1:50123"), Ok("G0 G1".to_owned()));
}

#[test]
fn a_router_and_its_children_are_one_candidate_asked_from_the_top() {
    let machine = Machine::new()
        .process(1000, 900, "llama-server", SESSION)
        .process(1001, 1000, "llama-server", SESSION)
        .process(1002, 1000, "llama-server", SESSION)
        .listens(HOST, "127.0.0.1:8080", &[1000])
        .listens(HOST, "127.0.0.1:5801", &[1001])
        .listens(HOST, "127.0.0.1:5802", &[1002])
        .gpu("G0", &[1001])
        .gpu("G1", &[1002]);
    let addresses = ["127.0.0.1:8080", "127.0.0.1:5801", "127.0.0.1:5802"].map(str::to_owned).to_vec();
    assert_eq!(machine.candidates(), [(vec![1001, 1002], addresses)]);
    assert_eq!(machine.servers(&[(8080, "m")]).len(), 1);
    // A proxy without a page: its children are servers of their own.
    let found = machine.servers(&[(5801, "a"), (5802, "b")]);
    assert_eq!(
        shown(&found),
        [
            "a http://127.0.0.1:5801/metrics on G0 by [1001]",
            "b http://127.0.0.1:5802/metrics on G1 by [1002]"
        ]
    );
}

#[test]
fn two_servers_on_one_gpu_are_two_and_one_model_gives_two_names() {
    let machine = Machine::new()
        .process(1000, 900, "vllm", SESSION)
        .process(1001, 1000, "VLLM::EngineCor", SESSION)
        .process(2000, 900, "vllm", SESSION)
        .process(2001, 2000, "VLLM::EngineCor", SESSION)
        .listens(HOST, "127.0.0.1:8001", &[2000])
        .listens(HOST, "127.0.0.1:8000", &[1000])
        .gpu("G0", &[1001, 2001]);
    assert_eq!(machine.candidates().len(), 2);
    let found = machine.servers(&[(8000, "org/m"), (8001, "org/m")]);
    assert_eq!(
        shown(&found),
        [
            "m http://127.0.0.1:8000/metrics on G0 by [1001], shared",
            "m-8001 http://127.0.0.1:8001/metrics on G0 by [2001], shared"
        ]
    );
}

#[test]
fn servers_below_one_launcher_in_one_container_are_told_apart_by_their_pages() {
    let machine = Machine::new()
        .process(999, 500, "python3", &docker("a"))
        .process(1000, 999, "vllm", &docker("a"))
        .process(1001, 1000, "VLLM::EngineCor", &docker("a"))
        .process(2000, 999, "vllm", &docker("a"))
        .process(2001, 2000, "VLLM::EngineCor", &docker("a"))
        .listens(CONTAINER, "0.0.0.0:9999", &[999])
        .listens(CONTAINER, "0.0.0.0:8000", &[1000])
        .listens(CONTAINER, "0.0.0.0:8001", &[2000])
        .gpu("G0", &[1001])
        .gpu("G1", &[2001]);
    assert_eq!(machine.candidates().len(), 1);
    let found = machine.servers(&[(8000, "a"), (8001, "b")]);
    assert_eq!(
        shown(&found),
        [
            "a http://172.17.0.2:8000/metrics on G0 by [1001]",
            "b http://172.17.0.2:8001/metrics on G1 by [2001]"
        ]
    );
    assert_eq!(machine.behind("172.17.0.2:8001"), Ok("G1".to_owned()));
}

#[test]
fn a_router_beside_its_shards_is_found_through_their_parent_or_their_container() {
    // Shards and router have one parent, which does not listen.
    let siblings = Machine::new()
        .process(1000, 900, "text-generation", SESSION)
        .process(1001, 1000, "python3", SESSION)
        .process(1002, 1000, "python3", SESSION)
        .process(1003, 1000, "router", SESSION)
        .listens(HOST, "127.0.0.1:29500", &[1001])
        .listens(HOST, "0.0.0.0:3000", &[1003])
        .gpu("G0", &[1001])
        .gpu("G1", &[1002]);
    let found = siblings.servers(&[(3000, "m")]);
    assert_eq!(shown(&found), ["m http://127.0.0.1:3000/metrics on G0 G1 by [1001, 1002]"]);
    // Workers that were left by their parent, in a container.
    let container = Machine::new()
        .process(1000, 500, "python3", &docker("a"))
        .process(1001, 1, "raylet", &docker("a"))
        .process(1002, 1001, "ray::Worker", &docker("a"))
        .process(1003, 1001, "ray::Worker", &docker("a"))
        .listens(HOST, "0.0.0.0:8000", &[1000])
        .listens(HOST, "0.0.0.0:43000", &[1001])
        .gpu("G0", &[1002])
        .gpu("G1", &[1003]);
    let found = container.servers(&[(8000, "m")]);
    assert_eq!(shown(&found), ["m http://127.0.0.1:8000/metrics on G0 G1 by [1002, 1003]"]);
    assert_eq!(container.behind("127.0.0.1:8000"), Ok("G0 G1".to_owned()));
}

#[test]
fn training_has_no_page_and_makes_a_gpu_shared() {
    let machine = Machine::new()
        .process(1000, 900, "vllm", SESSION)
        .process(1001, 1000, "VLLM::EngineCor", SESSION)
        .process(3000, 900, "train.py", SESSION)
        .listens(HOST, "127.0.0.1:8000", &[1000])
        .gpu("G0", &[1001, 3000]);
    let rest: Vec<_> =
        machine.candidates().into_iter().filter(|(_, addresses)| addresses.is_empty()).collect();
    assert_eq!(rest, [(vec![3000], Vec::new())]);
    let found = machine.servers(&[(8000, "m")]);
    assert_eq!(shown(&found), ["m http://127.0.0.1:8000/metrics on G0 by [1001], shared"]);
}

#[test]
fn ids_of_another_pid_namespace_are_told_and_make_no_server() {
    let machine = Machine::new().gpu("G0", &[123_456]).gpu("G1", &[123_456, 7]);
    let found = candidates(&machine.0);
    assert_eq!((found.candidates.len(), found.unknown), (0, BTreeSet::from([7, 123_456])));
    assert_eq!(machine.behind("127.0.0.1:8000"), Err(Unplaced::Hidden("127.0.0.1:8000".to_owned())));
}

#[test]
fn names_are_plain_whatever_the_model_is_called() {
    for (model, name) in [
        ("/models/Llama 3.1 (70B)/", "llama-3.1--70b"),
        ("../..", "vllm-8000"),
        ("", "vllm-8000"),
        ("\u{1b}[2J", "2j"),
        ("Ünï", "n"),
    ] {
        let machine = Machine::new()
            .process(1000, 900, "vllm", SESSION)
            .listens(HOST, "127.0.0.1:8000", &[1000])
            .gpu("G0", &[1000]);
        assert_eq!(machine.servers(&[(8000, model)])[0].name, name, "{model:?}");
    }
}

/// Any tree of processes, any sockets, any driver's list.
fn any_machine() -> impl Strategy<Value = (Facts, BTreeSet<usize>)> {
    let process = (0_u32..12, 0_u64..4, 0..4_usize, 0..3_usize);
    let socket = (0_u64..3, 1_u16..5, prop::collection::btree_set(0_u32..12, 1..3));
    (
        prop::collection::btree_map(0_u32..12, process, 0..12),
        prop::collection::vec(socket, 0..8),
        prop::collection::vec(prop::collection::btree_set(0_u32..14, 0..5), 1..4),
        prop::collection::btree_set(0..8_usize, 0..8),
    )
        .prop_map(|(processes, sockets, gpus, pages)| {
            let mut machine = Machine::new();
            for (pid, (parent, start, name, cgroup)) in processes {
                let (name, cgroup) =
                    (["python3", "vllm", "bash", "docker-proxy"][name], ["a", "b.service", "c"][cgroup]);
                machine = machine.process(pid, parent, name, cgroup);
                machine.0.processes.get_mut(&pid).unwrap().start = start;
            }
            for (netns, port, owners) in sockets {
                let owners: Vec<u32> = owners.into_iter().collect();
                machine = machine.listens(netns, &format!("0.0.0.0:{port}"), &owners);
            }
            for (gpu, pids) in gpus.into_iter().enumerate() {
                machine = machine.gpu(&format!("G{gpu}"), &pids.into_iter().collect::<Vec<_>>());
            }
            (machine.0, pages)
        })
}

proptest! {
    #[test]
    fn a_process_is_of_one_candidate_and_of_one_server_at_most((facts, with_page) in any_machine()) {
        let found = candidates(&facts);
        let mut placed: Vec<u32> = found.candidates.iter().flat_map(|one| one.pids.iter().copied()).collect();
        placed.extend(&found.unknown);
        placed.sort_unstable();
        prop_assert_eq!(placed, facts.computing().into_keys().collect::<Vec<_>>());
        for candidate in &found.candidates {
            prop_assert!(!candidate.pids.is_empty() && !candidate.gpus.is_empty());
        }
        let engine = Recognised { engine: crate::engine::usual(), models: vec!["m".to_owned()] };
        let page = |inode: u64| Page { url: inode.to_string(), port: 1, engine: engine.clone() };
        let inodes = with_page.into_iter().filter_map(|at| Some(facts.sockets.get(at)?.inode));
        let pages: Pages = inodes.map(|inode| (inode, page(inode))).collect();
        let servers = servers(&facts, &found.candidates, &pages);
        let names: BTreeSet<_> = servers.iter().map(|server| &server.name).collect();
        let pids: BTreeSet<_> = servers.iter().flat_map(|server| &server.pids).collect();
        prop_assert_eq!(names.len(), servers.len());
        prop_assert_eq!(pids.len(), servers.iter().map(|server| server.pids.len()).sum::<usize>());
        for server in &servers {
            prop_assert!(!server.gpus.is_empty() && !server.pids.is_empty());
            prop_assert!(server.shared.iter().all(|gpu| server.gpus.contains(gpu)));
        }
    }
}
