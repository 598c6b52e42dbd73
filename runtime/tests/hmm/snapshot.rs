//! Snapshots (the specification's section 3.3).

use sterna::hmm::Prot;

use crate::device::seen;
use crate::{BLOCK, Ctx, Outcome, Test, adapted};

pub(crate) const TESTS: &[Test] = &[
    adapted("hmm2.snapshot", "there is no shared page of zeros: a page that was only read is an ordinary one", snapshot),
    adapted("hmm.compound", "a huge folio stands for hugetlbfs, and protecting a part drops the order", compound),
];

fn snapshot(ctx: &Ctx<'_>) -> Outcome {
    let (dev0, dev1, m) = (ctx.dev(0), ctx.dev(1), ctx.mem(7));
    m.protect(m.all(), Prot::None);
    m.unmap(1..2);
    m.protect(2..3, Prot::Read);
    assert_eq!(m.page(2)[0], 0);
    m.protect(3..4, Prot::Write);
    m.page_mut(3).fill(3);
    m.protect(3..4, Prot::Read);
    m.protect(4..7, Prot::Write);
    m.page_mut(4).fill(4);
    assert_eq!(dev0.to_dev(&m, 5..6).map(|d| d.0), Ok(1));
    assert_eq!(dev1.to_dev(&m, 6..7).map(|d| d.0), Ok(1));
    let before = (dev0.frames(), dev1.frames());
    let private = [seen::PRIVATE_LOCAL | seen::WRITE, seen::NONE];
    let coherent = [seen::COHERENT_LOCAL | seen::WRITE, seen::COHERENT_REMOTE | seen::WRITE];
    let [five, six] = if ctx.config.coherent { coherent } else { private };
    let want = vec![seen::ERROR, seen::ERROR, seen::READ, seen::READ, seen::WRITE, five, six];
    assert_eq!(dev0.snapshot(&m, m.all()), Ok(want.clone()));
    assert_eq!(dev0.snapshot(&m, m.all()), Ok(want), "a snapshot changes nothing");
    assert_eq!((dev0.frames(), dev1.frames()), before);
    Ok(())
}

fn compound(ctx: &Ctx<'_>) -> Outcome {
    let (dev, m) = (ctx.dev(0), ctx.mem(BLOCK));
    m.seg.prefer_huge();
    m.fill(0);
    let all = |b: u8| Ok(vec![b; BLOCK as usize]);
    if dev.snapshot(&m, m.all()) != all(seen::WRITE | seen::PMD) {
        assert_eq!(dev.snapshot(&m, m.all()), all(seen::WRITE));
        return Err("the system gives no huge folios for shared memory");
    }
    m.protect(m.all(), Prot::Read);
    assert_eq!(dev.snapshot(&m, m.all()), all(seen::READ | seen::PMD));
    m.protect(0..1, Prot::Write);
    let bytes = dev.snapshot(&m, m.all()).unwrap();
    assert_eq!((bytes[0], bytes[1], bytes[511]), (seen::WRITE, seen::READ, seen::READ));
    m.protect(m.all(), Prot::Write);
    assert_eq!(dev.snapshot(&m, m.all()), all(seen::WRITE | seen::PMD), "what is uniform again is one mapping again");
    Ok(())
}
