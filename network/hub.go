package network

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// The hub has two tables of routes: what comes from an instance looks into main,
// which knows one way, up; what comes from above or from the hub itself looks
// into instances first.
const (
	instancesTable = 100
	upName         = "up"
	insideName     = "eth0" // an instance's link, as in Lambda
	readyTime      = 2 * time.Second
)

// hub is the namespace that instances with a way out are links of.
type hub struct {
	pool    *pool
	file    *os.File        // of its namespace
	links   *netlink.Handle // in it
	uplink  int             // index of the link's end on the host
	gateway *gateway
}

// newHub makes the hub and the host's part of it. If that fails nothing is left.
func newHub(o *Options, n *names) (*hub, error) {
	h, err := makeHub(o, n)
	if err == nil {
		err = h.serve(o)
	}
	if err == nil {
		return h, nil
	}
	if h != nil {
		err = errors.Join(err, h.close())
	}
	return nil, errors.Join(err, unbind(n.hubFile()), cleanHost(n), releaseForwarding(n))
}

// makeHub makes all but what listens on the gateway. The policy is there before
// the first packet can pass.
func makeHub(o *Options, n *names) (*hub, error) {
	err := newNamespace(n.hubFile(), func() error {
		return sysctls("ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6", "ipv4/ip_forward",
			"ipv4/conf/all/rp_filter", "-ipv4/conf/all/accept_redirects", "-ipv4/conf/default/accept_redirects",
			"-ipv4/conf/all/send_redirects", "-ipv4/conf/default/send_redirects")
	})
	if err != nil {
		return nil, err
	}
	h := &hub{}
	if h.file, err = os.Open(n.hubFile()); err != nil {
		return h, err
	}
	if h.links, err = netlink.NewHandleAt(netns.NsHandle(h.file.Fd()), unix.NETLINK_ROUTE); err != nil {
		return h, fmt.Errorf("netlink in the hub: %w", err)
	}
	if err := h.linkHost(o, n); err != nil {
		return h, err
	}
	if err := errors.Join(addRules(o, n, h.pool.prefix), addHubRules(n, int(h.file.Fd()))); err != nil {
		return h, fmt.Errorf("nftables: %w: does the kernel have nf_tables and its NAT?", err)
	}
	if err := h.configure(n); err != nil {
		return h, err
	}
	if err := ready(netlink.LinkByIndex, h.uplink); err != nil {
		return h, err
	}
	return h, holdForwarding(n)
}

// linkHost makes the link between host and hub, both ends down, and takes a
// range of addresses by making its route.
func (h *hub) linkHost(o *Options, n *names) error {
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: n.link}, PeerName: upName, PeerNamespace: netlink.NsFd(h.file.Fd())}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("link %s: %w", n.link, err)
	}
	h.uplink = link.Index
	err := sysctls("ipv6/conf/"+n.link+"/disable_ipv6", "-ipv4/conf/"+n.link+"/accept_redirects", "-ipv4/conf/"+n.link+"/send_redirects")
	if err != nil {
		return err
	}
	ranges := []netip.Prefix{o.CIDR}
	if !o.CIDR.IsValid() {
		if ranges, err = freeRanges(n); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil { // the hub's end is down: nothing passes
		return fmt.Errorf("link %s up: %w", n.link, err)
	}
	for _, r := range ranges {
		err = h.take(link, newPool(r))
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return fmt.Errorf("no range of addresses is free: %w", err)
}

// take tries one range.
func (h *hub) take(link netlink.Link, p *pool) error {
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(p.prefix), Scope: netlink.SCOPE_LINK}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("route to %s: %w", p.prefix, err)
	}
	h.pool = p
	addr := &netlink.Addr{IPNet: ipNet(single(p.at(atHost))), Peer: ipNet(single(p.at(atHub)))}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("address %s: %w", p.at(atHost), err)
	}
	via := *route
	via.Scope, via.Gw = netlink.SCOPE_UNIVERSE, p.at(atHub).AsSlice()
	if err := netlink.RouteReplace(&via); err != nil {
		return fmt.Errorf("route to %s: %w", p.prefix, err)
	}
	return nil
}

// freeRanges lists ranges that the host has no route to, in any table.
func freeRanges(n *names) ([]netip.Prefix, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var used []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if p, err := netip.ParsePrefix(r.Dst.String()); err == nil && p.Bits() > 0 {
			used = append(used, p)
		}
	}
	hash, err := hex.DecodeString(n.hash[:8])
	if err != nil {
		return nil, err
	}
	ranges := slices20(binary.BigEndian.Uint32(hash), used)
	if len(ranges) == 0 {
		return nil, errors.New("the host has routes to all of " + shared + ": choose a range for instances")
	}
	return ranges[:min(len(ranges), 8)], nil // the others have just been taken by somebody: more tries than there are folders
}

// configure gives the hub addresses and routes, and brings its link up.
func (h *hub) configure(n *names) error {
	up, err := h.links.LinkByName(upName)
	if err != nil {
		return fmt.Errorf("hub: link: %w", err)
	}
	lo, err := h.links.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("hub: loopback: %w", err)
	}
	p := h.pool
	err = errors.Join(
		h.links.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(single(p.gateway()))}),
		h.links.AddrAdd(up, &netlink.Addr{IPNet: ipNet(single(p.at(atHub))), Peer: ipNet(single(p.at(atHost)))}),
		h.links.LinkSetUp(up))
	if err == nil {
		err = h.links.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: p.at(atHost).AsSlice()})
	}
	for i, from := range []string{upName, "lo"} {
		rule := netlink.NewRule()
		rule.IifName, rule.Table, rule.Priority, rule.Family = from, instancesTable, 100+i, netlink.FAMILY_V4
		if err == nil {
			err = h.links.RuleAdd(rule)
		}
	}
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	return nil
}

// attach gives the namespace of this thread a link to the hub, an address and
// a way out.
func (h *hub) attach(ns *Namespace) error {
	if err := sysctls("ipv6/conf/default/disable_ipv6"); err != nil {
		return err
	}
	own, err := unix.Open(ownNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	inner, outer := hardware(2, ns.Address), hardware(3, ns.Address)
	link := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "i" + strconv.Itoa(int(h.pool.place(ns.Address))), HardwareAddr: outer},
		PeerName:  insideName, PeerHardwareAddr: inner, PeerNamespace: netlink.NsFd(own),
	}
	if err := h.links.LinkAdd(link); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	ns.link = link.Index
	address := ipNet(single(ns.Address))
	err = h.links.LinkSetUp(link)
	if err == nil {
		err = errors.Join(
			h.links.RouteAdd(&netlink.Route{LinkIndex: ns.link, Dst: address, Scope: netlink.SCOPE_LINK, Table: instancesTable}),
			h.links.NeighAdd(neighbour(ns.link, ns.Address, inner)))
	}
	if err == nil {
		err = h.inside(address, outer)
	}
	if err == nil {
		err = ready(h.links.LinkByIndex, ns.link)
	}
	return err
}

// ready waits until the end of a link that came up first passes packets: while
// the kernel has not noticed the other end it drops them. Kernels since 6.8
// notice when they are asked.
func ready(byIndex func(int) (netlink.Link, error), i int) error {
	for end := time.Now().Add(readyTime); ; <-time.After(time.Millisecond) {
		link, err := byIndex(i)
		if err != nil || link.Attrs().OperState == netlink.OperUp {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("link %s is %v", link.Attrs().Name, link.Attrs().OperState)
		}
	}
}

// inside configures this thread's end of the link. Neighbours are told, not
// asked: an instance cannot answer for another.
func (h *hub) inside(address *net.IPNet, outer net.HardwareAddr) error {
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer links.Close()
	eth0, err := links.LinkByName(insideName)
	if err != nil {
		return err
	}
	i, gateway := eth0.Attrs().Index, h.pool.gateway()
	if err := errors.Join(links.AddrAdd(eth0, &netlink.Addr{IPNet: address}), links.LinkSetUp(eth0)); err != nil {
		return fmt.Errorf("inside: %w", err)
	}
	err = errors.Join(
		links.NeighAdd(neighbour(i, gateway, outer)),
		links.RouteAdd(&netlink.Route{LinkIndex: i, Dst: ipNet(single(gateway)), Scope: netlink.SCOPE_LINK}))
	if err == nil {
		err = links.RouteAdd(&netlink.Route{LinkIndex: i, Gw: gateway.AsSlice()})
	}
	if err != nil {
		return fmt.Errorf("inside: %w", err)
	}
	return nil
}

// detach removes an instance's link, and frees its address.
func (h *hub) detach(ns *Namespace) error {
	if ns.link != 0 {
		if err := h.links.LinkDel(index(ns.link)); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("link: %w", err)
		}
		ns.link = 0
	}
	h.pool.giveBack(ns.Address)
	return nil
}

// close ends what serves, and gives the descriptors back. The namespace goes
// with its file.
func (h *hub) close() error {
	var err error
	if h.gateway != nil {
		err = h.gateway.close()
	}
	if h.links != nil {
		h.links.Close()
	}
	if h.file != nil {
		err = errors.Join(err, h.file.Close())
	}
	return err
}

// hardware is a link's address of our own making ("locally administered").
func hardware(kind byte, a netip.Addr) net.HardwareAddr {
	ip := a.As4()
	return net.HardwareAddr{kind<<2 | 2, 't', ip[0], ip[1], ip[2], ip[3]}
}

func neighbour(link int, a netip.Addr, at net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: link, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: at}
}

// cleanHost removes the link and the table, if they are there. The link may go by
// itself meanwhile, with the hub's namespace.
func cleanHost(n *names) error {
	var err error
	if link, e := netlink.LinkByName(n.link); e == nil {
		if err = netlink.LinkDel(link); errors.Is(err, unix.ENODEV) {
			err = nil
		}
	} else if _, missing := e.(netlink.LinkNotFoundError); !missing {
		err = fmt.Errorf("link %s: %w", n.link, e)
	}
	return errors.Join(err, removeRules(n))
}
