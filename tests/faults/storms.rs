//! Many requests and their duplicates over two instances, while faults come again and again. Their
//! clients retry. As long as the instances live and the store keeps its data, each key runs once.

use std::{collections::HashMap, time::Duration};

use futures::future::join_all;
use tokio::{task::JoinHandle, time::sleep};

use crate::{
    servers::proxy::Proxy,
    support::{Answer, Instance, PATIENCE, Server, Work, over_each_server, soon},
};

over_each_server! {
    p1_p2_p3_connections_break
    p1_p2_p3_the_server_crashes
    p1_p2_p3_the_server_freezes
}

const KEYS: usize = 30;

/// Sends each key over each instance, until it is answered.
fn start(instances: &[Instance], storm: &str) -> Vec<JoinHandle<Answer>> {
    let mut requests = Vec::new();
    for n in 0..KEYS {
        for instance in instances {
            let (instance, key) = (instance.clone(), format!("{storm} {n}"));
            requests.push(tokio::spawn(async move { instance.retry(&key).await }));
        }
    }
    requests
}

/// Sees that each key has run once, and that all have its answer.
async fn judge(instances: &[Instance], storm: &str, work: &Work, sent: Vec<JoinHandle<Answer>>) {
    let answers = soon("all are answered", join_all(sent)).await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    for instance in instances {
        instance.drain().await;
    }
    let mut ran: HashMap<String, Vec<usize>> = HashMap::new();
    for (at, run) in work.runs().iter().enumerate() {
        assert_eq!(run.attempt, 1);
        let key = run.execution.key().to_owned();
        ran.entry(key).or_default().push(at + 1);
    }
    for (n, answers) in answers.chunks(instances.len()).enumerate() {
        let key = format!("{storm} {n}");
        let [run] = ran[&key][..] else {
            panic!("{key} ran more than once: {:?}", ran[&key]);
        };
        for answer in answers {
            assert_eq!(answer.body, format!("run {run}"), "{key}: {answer:?}");
        }
        instances[0].send(&key).await.is_replay_of(run);
    }
    assert_eq!(ran.len(), KEYS);
}

/// What is held up by a fault or two must not lose its lease by that.
fn patient(instance: Instance) -> Instance {
    instance.with(|layer| layer.lease(2 * PATIENCE))
}

/// Each instance has an address of its own, whose connections break.
async fn p1_p2_p3_connections_break<S: Server>() {
    let server = S::shared();
    let work = Work::new().takes(Duration::from_millis(20));
    let (mut proxies, mut instances) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let proxy = Proxy::before(server.address()).await;
        instances.push(patient(S::instance_behind(&proxy, &work).await));
        proxies.push(proxy);
    }
    let sent = start(&instances, "break");
    for n in 0..20 {
        sleep(Duration::from_millis(40)).await;
        proxies[n % 2].cut();
    }
    judge(&instances, "break", &work, sent).await;
}

async fn p1_p2_p3_the_server_crashes<S: Server>() {
    let mut server = S::start();
    let work = Work::new().takes(Duration::from_millis(200));
    let instances = [
        patient(server.instance(&work).await),
        patient(server.instance(&work).await),
    ];
    let sent = start(&instances, "crash");
    for _ in 0..3 {
        sleep(Duration::from_millis(100)).await;
        server.kill();
        server.restart();
    }
    judge(&instances, "crash", &work, sent).await;
}

/// Each time for longer than a store call may take.
async fn p1_p2_p3_the_server_freezes<S: Server>() {
    let mut server = S::start();
    let work = Work::new().takes(Duration::from_millis(200));
    let instances = [
        patient(server.instance(&work).await),
        patient(server.instance(&work).await),
    ];
    let sent = start(&instances, "freeze");
    for _ in 0..2 {
        sleep(Duration::from_millis(100)).await;
        server.freeze();
        sleep(Duration::from_millis(1500)).await;
        server.thaw();
    }
    judge(&instances, "freeze", &work, sent).await;
}
