package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// Addresses of a pool that are no instance's: its first names the network.
const (
	atGateway  = 1 // the hub's loopback: resolver and doors
	atHost     = 2 // the host's end of the link to the hub
	atHub      = 3 // the hub's end
	firstPlace = 4
)

// pool gives addresses to instances. Those given back are given out again last:
// late packets for one instance do not meet the next.
type pool struct {
	prefix netip.Prefix

	// mu guards what follows.
	mu   sync.Mutex
	next uint32   // place of the first never given out
	back []uint32 // places, in order
}

func newPool(prefix netip.Prefix) *pool { return &pool{prefix: prefix.Masked(), next: firstPlace} }

// at is the address at a place.
func (p *pool) at(place uint32) netip.Addr {
	base := p.prefix.Addr().As4()
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(base[:])+place)
	return netip.AddrFrom4(a)
}

// place is where an address is.
func (p *pool) place(a netip.Addr) uint32 {
	base, is := p.prefix.Addr().As4(), a.As4()
	return binary.BigEndian.Uint32(is[:]) - binary.BigEndian.Uint32(base[:])
}

func (p *pool) gateway() netip.Addr { return p.at(atGateway) }

// take gives an address out.
func (p *pool) take() (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := uint32(1)<<(32-p.prefix.Bits()) - 1; p.next < last { // the last is the network's broadcast
		p.next++
		return p.at(p.next - 1), nil
	}
	if len(p.back) == 0 {
		return netip.Addr{}, fmt.Errorf("no address of %s is free: use a larger range", p.prefix)
	}
	place := p.back[0]
	p.back = p.back[1:]
	return p.at(place), nil
}

func (p *pool) giveBack(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.back = append(p.back, p.place(a))
}

// Sizes of ranges: the largest has a million addresses, the smallest eleven.
const (
	largest  = 12
	smallest = 28
)

// check refuses what cannot work.
func (o *Options) check() error {
	if c := o.CIDR; c.IsValid() && (!c.Addr().Is4() || c.Bits() < largest || c.Bits() > smallest) {
		return fmt.Errorf("network: addresses from %s: want an IPv4 range, a /%d to /%d", c, largest, smallest)
	}
	for _, a := range o.Allow {
		if !a.IsValid() || !a.Addr().Is4() {
			return fmt.Errorf("network: allowed range %s: want an IPv4 range", a)
		}
		if o.CIDR.IsValid() && a.Overlaps(o.CIDR) {
			return fmt.Errorf("network: allowed range %s: overlaps %s, where instances are: they cannot reach each other", a, o.CIDR)
		}
	}
	for port, to := range o.Doors {
		_, _, err := net.SplitHostPort(to)
		if port == 0 || port == dnsPort {
			err = errors.Join(err, errors.New("this port cannot be a door"))
		}
		if err != nil {
			return fmt.Errorf("network: door from port %d to %q: %w", port, to, err)
		}
	}
	return nil
}

// shared is the range for addresses behind a carrier's NAT (RFC 6598), which no
// network that the host may want to reach should use. slices are what one state
// folder takes of it: 4,091 instances.
const (
	shared    = "100.64.0.0/10"
	sliceBits = 20
)

// slices lists ranges to try, in an order that hash begins, without those that
// overlap one that is used.
func slices20(hash uint32, used []netip.Prefix) []netip.Prefix {
	all := newPool(netip.MustParsePrefix(shared))
	count := uint32(1) << (sliceBits - all.prefix.Bits())
	var free []netip.Prefix
next:
	for i := range count {
		slice := netip.PrefixFrom(all.at((hash+i)%count<<(32-sliceBits)), sliceBits)
		for _, u := range used {
			if u.Overlaps(slice) {
				continue next
			}
		}
		free = append(free, slice)
	}
	return free
}

// ipNet is a prefix as netlink wants it.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

// single is the range that holds one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, 32) }
