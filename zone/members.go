package zone

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"thaw/chunk"
	"thaw/erasure"
)

const (
	maxMembers  = 1000    // placing more takes seconds, and a zone has tens
	maxWeight   = 1000    // finer than anybody measures
	maxListSize = 1 << 20 // bytes of a file of members
	maxLabel    = 64      // bytes of the name of a rack or member
)

// Member is a node of the zone.
type Member struct {
	Addr   string // host:port, in lower case
	Weight int    // 1 to 1000: its part of the stripes beside the others'
	Rack   string // what fails together; "" is a rack of its own
	Name   string // what it is placed by; "" is Addr. A node that takes another's place takes its name
}

// identity is what places the node.
func (m Member) identity() string { return cmp.Or(m.Name, m.Addr) }

// Members is one version of the zone's list of nodes. It does not change, and
// is safe for concurrent use.
type Members struct {
	version uint64
	list    []Member // by identity: the order in which they were named is of no account
	seeds   []uint64 // of each its hash

	mu     sync.Mutex
	tables map[int][]uint16 // guarded by mu: by n
}

// newMembers checks a list: no address or name twice, since that would be two
// stripes on one node.
func newMembers(version uint64, list []Member) (*Members, error) {
	m := &Members{version: version, list: slices.Clone(list), tables: map[int][]uint16{}}
	if len(list) > maxMembers {
		return nil, fmt.Errorf("zone: %d members, want %d at most", len(list), maxMembers)
	}
	slices.SortFunc(m.list, func(a, b Member) int { return cmp.Compare(a.identity(), b.identity()) })
	seen := map[string]bool{}
	for i, node := range m.list {
		if seen[node.Addr] || i > 0 && m.list[i-1].identity() == node.identity() {
			return nil, fmt.Errorf("zone: member %s %s is named twice", node.Addr, node.Name)
		}
		seen[node.Addr] = true
		if node.Weight < 1 || node.Weight > maxWeight {
			return nil, fmt.Errorf("zone: member %s has weight %d, want 1 to %d", node.Addr, node.Weight, maxWeight)
		}
		sum := sha256.Sum256([]byte(node.identity()))
		m.seeds = append(m.seeds, binary.BigEndian.Uint64(sum[:]))
	}
	return m, nil
}

// Version is the number that the list says it has; 0 if it says none.
func (m *Members) Version() uint64 { return m.version }

// All gives the members by name, or by address where they have none. The slice is the caller's.
func (m *Members) All() []Member { return slices.Clone(m.list) }

// same reports whether o names the same nodes under the same version.
func (m *Members) same(o *Members) bool {
	return m.version == o.version && slices.Equal(m.list, o.list)
}

// Place gives the nodes of a chunk's n stripes by index, all distinct. If the
// list has fewer than n, indexes without a node have a Member without address.
// It panics unless 1 ≤ n ≤ 32. The first call for an n takes
// milliseconds, with hundreds of members a second.
func (m *Members) Place(name chunk.Name, n int) []Member {
	nodes := make([]Member, n)
	for i, node := range m.place(name, n) {
		if node != nobody {
			nodes[i] = m.list[node]
		}
	}
	return nodes
}

// place is Place in numbers of the list. The slice is not to be written to.
func (m *Members) place(name chunk.Name, n int) []uint16 {
	slot := slotOf(name)
	return m.table(n)[slot*n : (slot+1)*n]
}

// table gives all slots' places, n for each. Nobody writes to it.
func (m *Members) table(n int) []uint16 {
	if n < 1 || n > erasure.Max {
		panic("zone: placing " + strconv.Itoa(n) + " stripes")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tables[n] == nil {
		m.tables[n] = place(m, n)
	}
	return m.tables[n]
}

// ReadMembers reads the list that a --zone value names:
//
//	host:port[,host:port…]   the nodes themselves
//	file:PATH                a line a node, "host:port [weight=N] [rack=NAME] [name=NAME]"; the first may be "version N"; # begins a comment
//	dns:NAME:PORT            the addresses of NAME
//	dns:NAME                 the hosts and ports of the SRV records of NAME
//
// A file or name may hold no node; a list in place may not.
func ReadMembers(ctx context.Context, zone string) (*Members, error) {
	s, err := newSource(zone, nil)
	if err != nil {
		return nil, err
	}
	return s.read(ctx)
}

// parseList reads host:port[,host:port…].
func parseList(s string) (*Members, error) {
	if strings.Contains(s, "://") {
		return nil, fmt.Errorf("zone: %.300q is a URL, not host:port[,host:port…], file:PATH or dns:NAME", s)
	}
	var list []Member
	for field := range strings.SplitSeq(s, ",") {
		addr, err := parseAddr(strings.TrimSpace(field))
		if err != nil {
			return nil, err
		}
		list = append(list, Member{Addr: addr, Weight: 1})
	}
	return newMembers(0, list)
}

// parseFile reads a file of members; an error names the line.
func parseFile(data []byte) (*Members, error) {
	if len(data) > maxListSize {
		return nil, fmt.Errorf("zone: list of members longer than %d bytes", maxListSize)
	}
	var list []Member
	var version uint64
	first, number := true, 0
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		number++
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		var err error
		if first && fields[0] == "version" && len(fields) == 2 {
			version, err = strconv.ParseUint(fields[1], 10, 64)
		} else {
			var node Member
			node, err = parseLine(fields)
			list = append(list, node)
		}
		if err != nil {
			return nil, fmt.Errorf("zone: list of members, line %d: %w", number, err)
		}
		first = false
	}
	if err := lines.Err(); err != nil { // what follows is not read
		return nil, fmt.Errorf("zone: list of members, line %d: %w", number+1, err)
	}
	return newMembers(version, list)
}

func parseLine(fields []string) (Member, error) {
	addr, err := parseAddr(fields[0])
	node := Member{Addr: addr, Weight: 1}
	for _, field := range fields[1:] {
		key, value, _ := strings.Cut(field, "=")
		switch {
		case err != nil:
		case key == "weight":
			node.Weight, err = strconv.Atoi(value)
		case key == "rack" && value != "" && len(value) <= maxLabel:
			node.Rack = value
		case key == "name" && value != "" && len(value) <= maxLabel:
			node.Name = value
		default:
			err = fmt.Errorf("%.80q is not weight=N, rack=NAME or name=NAME", field)
		}
	}
	return node, err
}

// parseAddr brings host:port into the one form that is hashed.
func parseAddr(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf("zone: %.300q is not host:port: %w", s, err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return "", fmt.Errorf("zone: %.300q has no port from 1 to 65535", s)
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	} else if err := checkHost(host); err != nil {
		return "", fmt.Errorf("zone: %.300q: %w", s, err)
	}
	return net.JoinHostPort(host, strconv.FormatUint(number, 10)), nil
}

func checkHost(host string) error {
	letters := func(r rune) bool { return strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-._", r) }
	if host == "" || len(host) > 253 || strings.TrimLeftFunc(host, letters) != "" {
		return errors.New("the host is neither an address nor a name")
	}
	return nil
}
