// Package network gives instances a network namespace of their own: one with
// nothing but its loopback, or one with a way out ("egress").
//
// # The way out
//
//	instance             hub                          the host
//	┌──────────┐  veth  ┌───────────────────────┐  veth  ┌───────────────────────┐
//	│ eth0     ├────────┤ i5       up           ├────────┤ thaw-0a1b2c3d4e   eth0├── outside
//	│ addr /32 │        │ gateway: DNS, doors   │        │ nftables: thaw_…      │
//	└──────────┘        └───────────────────────┘        └───────────────────────┘
//
// Instances are links of a hub, a namespace that only passes packets on: what
// comes from an instance goes up, whatever its destination, unless it is for the
// gateway, and only with the instance's own address as its source. The host has
// one link, one table of nftables, one route and, while there is a hub, has
// forwarding on. The table is the policy: packets from the hub reach no address
// of the host's, none of a private or otherwise special range, and no other
// instance, unless Options.Allow says so; what leaves has the host's address.
// There is no IPv6 on the way.
//
// On the gateway listens what this process serves: a DNS forwarder that asks the
// host's resolvers, and doors (Options.Doors). Their sockets live in the hub,
// so no instance needs to reach a socket of the host.
//
// # What is left behind
//
// Close removes all. A process that is killed leaves namespaces, link, table and
// forwarding as they are, closed as before, and the next Open or Reap for the
// same state folder removes them. Namespaces are files below Options.Run. In the
// host's namespace nothing else is touched.
package network

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrInUse: another process has the networks of this state folder.
var ErrInUse = errors.New("another process runs this folder's networks")

// RunDir is where namespaces are unless told otherwise.
const RunDir = "/run/thaw-network"

// Options say whose networks these are, and what instances may reach.
type Options struct {
	State string // folder of the worker: tells its networks from those of others on the host
	Run   string // folder for namespaces, on a local file system; "" = RunDir
	// CIDR is where instances' addresses are from, a /12 to /28; not valid = some
	// /20 of 100.64.0.0/10 that the host has no route to.
	CIDR netip.Prefix
	// Allow are IPv4 ranges that instances may reach though they are private. An
	// address of the host itself has to be allowed by its /32.
	Allow []netip.Prefix
	// Doors lead from a TCP port of the gateway to an address on the host, as in
	// 9000: "127.0.0.1:9000". Port 53 is the resolver's.
	Doors map[uint16]string
	// Dial is how doors reach their addresses; nil = TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Resolv is the file that names the host's resolvers; "" = /etc/resolv.conf.
	Resolv string
}

// Network makes and removes namespaces. It is safe for concurrent use.
type Network struct {
	options Options
	names   names
	lock    *os.File

	// mu guards what follows.
	mu     sync.Mutex
	hub    *hub // nil = no instance has needed a way out yet
	taken  map[string]*Namespace
	closed bool
}

// Namespace is the network of one instance.
type Namespace struct {
	ID      string
	Path    string     // a file, for an OCI runtime's or nsenter's network namespace; "" = of a process, see Attach
	Address netip.Addr // of its eth0; not valid = it has none

	network *Network
	link    int // index in the hub
}

// names are what things are called on the host, by their state folder.
type names struct {
	state string // its path
	hash  string // 12 hex digits
	table string // of nftables
	link  string // the host's end of the way out: at most 15 bytes
	run   string // folder
}

func (o *Options) names() (names, error) {
	state, err := filepath.Abs(o.State)
	if err != nil || o.State == "" {
		return names{}, fmt.Errorf("network: state folder %q: %w", o.State, errors.Join(err, os.ErrInvalid))
	}
	sum := sha256.Sum256([]byte(state))
	hash := hex.EncodeToString(sum[:6])
	run := o.Run
	if run == "" {
		run = RunDir
	}
	return names{state: state, hash: hash, table: "thaw_" + hash, link: "thaw-" + hash[:10], run: filepath.Join(run, hash)}, nil
}

// hubFile is the hub's namespace, nsDir the folder of instances' ones, sysDir
// that of their views of /sys.
func (n *names) hubFile() string { return filepath.Join(n.run, "hub") }
func (n *names) nsDir() string   { return filepath.Join(n.run, "ns") }
func (n *names) sysDir() string  { return filepath.Join(n.run, "sys") }

// Open takes the networks of a state folder, and removes what a process that
// was killed has left of them. It needs root. Nothing is made before the first
// New that needs it. An error matches ErrInUse if a process that lives has them.
func Open(o Options) (*Network, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network: making namespaces needs root: try with sudo")
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	names, err := o.names()
	if err != nil {
		return nil, err
	}
	lock, err := take(&names)
	if err != nil {
		return nil, err
	}
	if err := clean(&names); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if err := errors.Join(os.MkdirAll(names.nsDir(), 0o700), os.MkdirAll(names.sysDir(), 0o700)); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &Network{options: o, names: names, lock: lock, taken: map[string]*Namespace{}}, nil
}

// Reap removes what a process that was killed has left of a state folder's
// networks, State and Run as it had them, and names what it has removed. If a
// process that lives has them, the error matches ErrInUse.
func Reap(o Options) (removed []string, err error) {
	names, err := o.names()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(names.run); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	lock, err := take(&names)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(clean(&names), leave(&names), lock.Close()); err != nil {
		return nil, err
	}
	return []string{"network " + names.link}, nil
}

// ReapOthers is Reap for all state folders that are gone, of those who had this
// Run; what is of one that lives stays.
func ReapOthers(run string) (removed []string, err error) {
	items, err := os.ReadDir(run)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, item := range items {
		state, rerr := os.ReadFile(lockFile(filepath.Join(run, item.Name())))
		if rerr != nil || len(state) == 0 {
			continue // the lock is about to be taken, or to go
		}
		if _, serr := os.Stat(string(state)); !errors.Is(serr, os.ErrNotExist) {
			continue
		}
		names, rerr := Reap(Options{State: string(state), Run: run})
		if removed = append(removed, names...); !errors.Is(rerr, ErrInUse) {
			err = errors.Join(err, rerr)
		}
	}
	return removed, err
}

// leave removes the folder, and with the last one what they are all in.
func leave(n *names) error {
	err := os.RemoveAll(n.run)
	_ = os.Remove(filepath.Dir(n.run)) // unless others are in it
	return err
}

// take makes the folder and locks it, for as long as the file is open, in which it
// says for which state.
func take(n *names) (*os.File, error) {
	for {
		name := lockFile(n.run)
		var f *os.File
		err := os.MkdirAll(n.run, 0o700)
		if err == nil {
			f, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		}
		if errors.Is(err, os.ErrNotExist) {
			continue // a Reap or Close has just removed the folder, or that of all
		}
		if err != nil {
			return nil, fmt.Errorf("network: %w", err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return nil, fmt.Errorf("network: %s: %w", n.run, errors.Join(ErrInUse, err))
		}
		if same(f, name) {
			if _, err := f.WriteAt([]byte(n.state), 0); err != nil {
				return nil, errors.Join(fmt.Errorf("network: %w", err), f.Close())
			}
			return f, nil
		}
		f.Close()
	}
}

func lockFile(run string) string { return filepath.Join(run, "lock") }

// same tells whether a file still has its name.
func same(f *os.File, name string) bool {
	a, err := f.Stat()
	b, err2 := os.Stat(name)
	return err == nil && err2 == nil && os.SameFile(a, b)
}

// clean removes everything that has the names.
func clean(n *names) error {
	var err error
	for _, dir := range []string{n.sysDir(), n.nsDir()} {
		entries, e := os.ReadDir(dir)
		if e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
		for _, e := range entries {
			err = errors.Join(err, unbind(filepath.Join(dir, e.Name())))
		}
	}
	err = errors.Join(err, unbind(n.hubFile()), cleanHost(n), releaseForwarding(n))
	if err != nil {
		return fmt.Errorf("network: what is left in %s: %w", n.run, err)
	}
	return nil
}

const (
	letters   = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	maxIDSize = 128 // bytes, as of instances
)

func checkID(id string) error {
	if id == "" || len(id) > maxIDSize || !strings.Contains(letters, id[:1]) || strings.Trim(id, letters+"_.-") != "" {
		return fmt.Errorf("network: id %q: want letters, digits, _ . -", id)
	}
	return nil
}

// New makes a namespace: with a loopback alone, or with a way out. The first
// one with a way out also makes the hub. The namespace stays until its Remove,
// or Close, also if ctx ends later. Times are in docs/decisions/010-networks-and-groups.md.
//
// It belongs to the host's user namespace. An instance with one of its own may
// not mount a /sys for it, see Namespace.Sys, nor bind ports below 1024.
func (n *Network) New(ctx context.Context, id string, egress bool) (*Namespace, error) {
	ns := &Namespace{ID: id, Path: filepath.Join(n.names.nsDir(), id)}
	return n.make(ctx, ns, egress, func(attach func() error) error { return newNamespace(ns.Path, attach) })
}

// Attach gives a way out to the namespace that a runtime has made for an
// instance, whose process pid is in it: one that has done nothing yet, and does
// not end meanwhile. Remove takes the way out away; the namespace ends with its
// processes. gVisor looks at its network when it starts, and needs New.
func (n *Network) Attach(ctx context.Context, id string, pid int) (*Namespace, error) {
	ns := &Namespace{ID: id}
	return n.make(ctx, ns, true, func(attach func() error) error {
		theirs, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("namespace of process %d: %w", pid, err)
		}
		defer unix.Close(theirs)
		if own, err := isOwn(theirs); err != nil || own {
			return fmt.Errorf("process %d has no network namespace of its own: %w", pid, errors.Join(err, os.ErrInvalid))
		}
		return inNamespace(theirs, attach)
	})
}

// make makes a namespace: in calls the function that it gets in it.
func (n *Network) make(ctx context.Context, ns *Namespace, egress bool, in func(attach func() error) error) (*Namespace, error) {
	if err := errors.Join(checkID(ns.ID), ctx.Err()); err != nil {
		return nil, err
	}
	ns.network = n
	hub, err := n.enter(ns, egress)
	if err != nil {
		return nil, err
	}
	attach := func() error { return nil }
	if egress {
		ns.Address, err = hub.pool.take()
		attach = func() error { return hub.attach(ns) }
	}
	if err == nil {
		err = in(attach)
	}
	if err != nil {
		return nil, fmt.Errorf("network of %s: %w", ns.ID, errors.Join(err, ns.Remove()))
	}
	return ns, nil
}

// enter notes a namespace that is going to be, and returns the hub if it needs
// one.
func (n *Network) enter(ns *Namespace, egress bool) (*hub, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closed:
		return nil, errors.New("network: closed")
	case n.taken[ns.ID] != nil:
		return nil, fmt.Errorf("network of %s: there is one", ns.ID)
	}
	if egress && n.hub == nil {
		hub, err := newHub(&n.options, &n.names)
		if err != nil {
			return nil, fmt.Errorf("network: way out: %w", err)
		}
		n.hub = hub
	}
	n.taken[ns.ID] = ns
	return n.hub, nil
}

// Gateway is the address, of the hub, at which instances with a way out find
// their resolver and the doors. It makes the hub if there is none.
func (n *Network) Gateway() (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return netip.Addr{}, errors.New("network: closed")
	}
	if n.hub == nil {
		hub, err := newHub(&n.options, &n.names)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("network: way out: %w", err)
		}
		n.hub = hub
	}
	return n.hub.pool.gateway(), nil
}

// Remove removes the namespace. Processes that are still in it keep a network
// that leads nowhere. Doing it again is fine.
func (ns *Namespace) Remove() error {
	n := ns.network
	n.mu.Lock()
	hub, mine := n.hub, n.taken[ns.ID] == ns
	if mine {
		n.taken[ns.ID] = &Namespace{} // nobody else's until it is gone
	}
	n.mu.Unlock()
	if !mine {
		return nil
	}
	var err error
	if hub != nil && ns.Address.IsValid() {
		err = hub.detach(ns)
	}
	err = errors.Join(err, unbind(filepath.Join(n.names.sysDir(), ns.ID)))
	if ns.Path != "" {
		err = errors.Join(err, unbind(ns.Path))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		n.taken[ns.ID] = ns // try again
		return fmt.Errorf("network of %s: remove: %w", ns.ID, err)
	}
	delete(n.taken, ns.ID)
	return nil
}

// Sys mounts a /sys that shows this namespace's network, read-only, and returns
// its folder, for a bind mount: an instance in a user namespace of its own may not
// mount one. It stays until Remove. It takes about as long as New.
func (ns *Namespace) Sys() (string, error) {
	dir := filepath.Join(ns.network.names.sysDir(), ns.ID)
	ns.network.mu.Lock()
	defer ns.network.mu.Unlock()
	if ns.network.taken[ns.ID] != ns || ns.Path == "" {
		return "", fmt.Errorf("network of %s: no namespace for a /sys: %w", ns.ID, os.ErrInvalid)
	}
	if err := mountSys(ns.Path, dir); err != nil {
		return "", fmt.Errorf("network of %s: /sys: %w", ns.ID, err)
	}
	return dir, nil
}

// Close removes all namespaces, the hub and what the host has of it, and waits
// for what serves the gateway to end. No New may be under way.
func (n *Network) Close() error {
	n.mu.Lock()
	hub, closed := n.hub, n.closed
	n.hub, n.closed = nil, true
	n.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	if hub != nil {
		err = hub.close()
	}
	err = errors.Join(err, clean(&n.names))
	if err == nil {
		err = leave(&n.names)
	}
	return errors.Join(err, n.lock.Close())
}
