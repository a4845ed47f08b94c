package network

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// maxQuestions bounds how many packets a second one instance may send to the
// resolver: what is more would fill the socket that all share. Lambda's own
// limit is 1,024.
const maxQuestions = 500

// maxConnections bounds how many connections, of any protocol, one instance may
// have through the host at a time. The host's table of connections is shared:
// 65,536 on a small machine.
const maxConnections = 1024

// maxCalls bounds how many connections a second one instance may begin with the
// gateway, after so many at once. Each costs this process, which serves everybody,
// about as much as a warm invoke. What is more is dropped, not refused: TCP sends
// its first packet again, after a second.
const maxCalls = 64

// forgetAfter is how long after its last packet the kernel forgets how many an
// instance has sent: it is as if there had been none after one second. A set that
// keeps all that ever were is full one day, and then bounds none that is new.
const forgetAfter = 10 * time.Second

// forbidden lists where instances do not get: this host's loopback, private
// ranges, and those with a special use, by the IANA's registry (RFC 6890), less
// those for documentation. Instances' own addresses are in one of them, or in
// Options.CIDR.
func forbidden() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range []string{
		"0.0.0.0/8", "10.0.0.0/8", shared, "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
		"192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
	} {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

// rules writes chains of one table in a batch.
type rules struct {
	conn  *nftables.Conn
	table *nftables.Table
	link  string // the host's end of the way out
}

// addRules makes the table, in one transaction.
func addRules(o *Options, n *names, own netip.Prefix) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	r := &rules{conn: conn, table: conn.AddTable(table(n)), link: n.link}
	conns := &nftables.Set{Table: r.table, Name: "connections", KeyType: nftables.TypeIPAddr, Dynamic: true, Size: 1 << 16}
	if err := conn.AddSet(conns, nil); err != nil {
		return err
	}
	r.input(o)
	r.forward(o, own, conns)
	r.masquerade(own)
	return conn.Flush()
}

func table(n *names) *nftables.Table {
	return &nftables.Table{Name: n.table, Family: nftables.TableFamilyINet}
}

// chain adds a base chain that accepts what no rule of it decides: other
// tables' chains are asked anyway.
func (r *rules) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	return r.conn.AddChain(&nftables.Chain{Name: name, Table: r.table, Type: kind, Hooknum: hook, Priority: priority, Policy: &policy})
}

// add adds a rule of expressions.
func (r *rules) add(c *nftables.Chain, parts ...[]expr.Any) {
	rule := &nftables.Rule{Table: r.table, Chain: c}
	for _, p := range parts {
		rule.Exprs = append(rule.Exprs, p...)
	}
	r.conn.AddRule(rule)
}

// refuse adds rules that refuse what matches, so that the sender learns of it at
// once: a reset for TCP, since the kernel sends few errors a second.
func (r *rules) refuse(c *nftables.Chain, parts ...[]expr.Any) {
	tcp := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{unix.IPPROTO_TCP})}
	reset := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	prohibited := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
	r.add(c, append(parts, tcp, reset)...)
	r.add(c, append(parts, prohibited)...)
}

// input: an instance reaches no address of the host but those allowed one by one.
func (r *rules) input(o *Options) {
	c := r.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	for _, p := range o.Allow {
		if p.Bits() == 32 {
			r.add(c, r.from(), to(p), verdict(expr.VerdictAccept))
		}
	}
	r.refuse(c, r.from())
}

// forward: out, and what belongs to it back in.
func (r *rules) forward(o *Options, own netip.Prefix, conns *nftables.Set) {
	c := r.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	r.add(c, r.from(), clampMSS())
	r.add(c, r.into(), clampMSS())
	r.refuse(c, r.from(), to(own)) // one instance to another
	r.add(c, r.from(), answer(), verdict(expr.VerdictAccept))
	r.add(c, r.into(), answer(), verdict(expr.VerdictAccept))
	r.refuse(c, r.into()) // nobody outside begins
	r.add(c, r.from(), family(unix.NFPROTO_IPV6), verdict(expr.VerdictDrop))
	r.refuse(c, r.from(), beyond(conns, &expr.Connlimit{Count: maxConnections, Flags: expr.NFT_CONNLIMIT_F_INV}))
	for _, p := range o.Allow {
		r.add(c, r.from(), to(p), verdict(expr.VerdictAccept))
	}
	for _, p := range forbidden() {
		r.refuse(c, r.from(), to(p))
	}
	r.add(c, r.from(), verdict(expr.VerdictAccept))
}

// masquerade: what leaves has the host's address.
func (r *rules) masquerade(own netip.Prefix) {
	c := r.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	r.add(c, family(unix.NFPROTO_IPV4), address(12, own), interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpNeq, r.link), []expr.Any{&expr.Masq{}})
}

// from matches packets that come from the hub, into those that go there.
func (r *rules) from() []expr.Any { return interfaceIs(expr.MetaKeyIIFNAME, expr.CmpOpEq, r.link) }
func (r *rules) into() []expr.Any { return interfaceIs(expr.MetaKeyOIFNAME, expr.CmpOpEq, r.link) }

func interfaceIs(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: padded}}
}

func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

func family(f byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{f})}
}

// to matches IPv4 packets to a range.
func to(p netip.Prefix) []expr.Any {
	return append(family(unix.NFPROTO_IPV4), address(16, p)...) // where the IPv4 header has its destination
}

// address matches a range at an offset in the IPv4 header.
func address(offset uint32, p netip.Prefix) []expr.Any {
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-p.Bits()))
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		equal(p.Masked().Addr().AsSlice()),
	}
}

// answer matches packets of connections that were let through.
func answer() []expr.Any {
	bits := binary.NativeEndian.AppendUint32(nil, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: bits, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// beyond matches what is more than a limit that each source has of its own.
func beyond(set *nftables.Set, limit expr.Any) []expr.Any {
	op := uint32(unix.NFT_DYNSET_OP_ADD)
	if set.HasTimeout {
		op = unix.NFT_DYNSET_OP_UPDATE // it begins anew
	}
	return append(family(unix.NFPROTO_IPV4),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Dynset{SrcRegKey: 1, SetName: set.Name, SetID: set.ID, Operation: op, Exprs: []expr.Any{limit}})
}

// addHubRules makes the hub's own table, which bounds questions and calls: the
// rest of the policy is the host's.
func addHubRules(n *names, hub int) error {
	conn, err := nftables.New(nftables.WithNetNSFd(hub))
	if err != nil {
		return err
	}
	r := &rules{conn: conn, table: conn.AddTable(table(n)), link: upName}
	c := r.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter)
	for _, bound := range []struct {
		name string
		rate uint64
		of   []expr.Any
	}{
		{"questions", maxQuestions, []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{unix.IPPROTO_UDP})}},
		{"calls", maxCalls, beginsTCP()},
	} {
		sources := &nftables.Set{
			Table: r.table, Name: bound.name, KeyType: nftables.TypeIPAddr, Dynamic: true, Size: 1 << 16, HasTimeout: true, Timeout: forgetAfter,
		}
		if err := conn.AddSet(sources, nil); err != nil {
			return err
		}
		rate := &expr.Limit{Type: expr.LimitTypePkts, Rate: bound.rate, Unit: expr.LimitTimeSecond, Burst: uint32(bound.rate), Over: true}
		r.add(c, bound.of, beyond(sources, rate), verdict(expr.VerdictDrop))
	}
	return conn.Flush()
}

// beginsTCP matches a connection's first packets.
func beginsTCP() []expr.Any {
	const flags, synRst, syn = 13, 0x06, 0x02 // of the TCP header
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{unix.IPPROTO_TCP}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: flags, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{synRst}, Xor: []byte{0}},
		equal([]byte{syn}),
	}
}

// clampMSS makes TCP's segments fit the way out, which may be a tunnel.
func clampMSS() []expr.Any {
	const maxSegment = 2 // of TCP's options
	return append(beginsTCP(),
		&expr.Rt{Key: expr.RtTCPMSS, Register: 1},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: maxSegment, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	)
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

// removeRules removes the table, if it is there.
func removeRules(n *names) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if withoutTables(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.Name == n.table {
			conn.DelTable(t)
			return conn.Flush()
		}
	}
	return nil
}
