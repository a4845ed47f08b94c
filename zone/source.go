package zone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// fileEvery is how often a file of members is looked at: an operator waits
	// for it; it costs a stat.
	fileEvery = time.Second
	// dnsEvery is how often a name is resolved: what most name servers of
	// clusters let answers live.
	dnsEvery = 30 * time.Second
	// lookupTime bounds one reading of the list.
	lookupTime = 5 * time.Second
)

// source is where the list of members comes from. It is for one goroutine.
type source struct {
	every   time.Duration // how often to read it again; 0: never
	lenient bool          // it may fail at first: others' services fail, and come back
	read    func(context.Context) (*Members, error)
}

// newSource understands a --zone value and does no I/O. A nil resolver is the
// system's.
func newSource(zone string, resolver *net.Resolver) (*source, error) {
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	if path, ok := strings.CutPrefix(zone, "file:"); ok {
		if path == "" {
			return nil, errors.New("zone: file: needs a path")
		}
		f := &fileList{path: path}
		return &source{fileEvery, false, f.read}, nil
	}
	if name, ok := strings.CutPrefix(zone, "dns:"); ok {
		d := &dnsList{resolver: resolver, name: name}
		if strings.Contains(name, ":") {
			var err error
			if d.name, d.port, err = net.SplitHostPort(name); err != nil {
				return nil, fmt.Errorf("zone: %.300q is not dns:NAME[:PORT]: %w", zone, err)
			}
		}
		if err := checkHost(strings.ToLower(d.name)); err != nil {
			return nil, fmt.Errorf("zone: %.300q is not dns:NAME[:PORT]: %w", zone, err)
		}
		return &source{dnsEvery, true, d.read}, nil
	}
	m, err := parseList(zone)
	return &source{0, false, func(context.Context) (*Members, error) { return m, nil }}, err
}

// fileList reads a file when it has another time, length or inode than before.
type fileList struct {
	path string
	info os.FileInfo
	last *Members
}

func (f *fileList) read(context.Context) (*Members, error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, fmt.Errorf("zone: list of members: %w", err)
	}
	if f.last != nil && os.SameFile(info, f.info) && info.ModTime().Equal(f.info.ModTime()) && info.Size() == f.info.Size() {
		return f.last, nil
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("zone: list of members: %s is not a file", f.path)
	}
	data, err := readBounded(f.path)
	if err != nil {
		return nil, fmt.Errorf("zone: list of members: %w", err)
	}
	m, err := parseFile(data)
	if err != nil {
		return nil, fmt.Errorf("%w (in %s)", err, f.path)
	}
	if old := f.last; old != nil && m.version <= old.version && (m.version != 0 || old.version != 0) {
		return nil, fmt.Errorf("zone: %s has changed, but its version %d is not above %d: give it a higher one", f.path, m.version, old.version)
	}
	f.info, f.last = info, m
	return m, nil
}

// readBounded reads one byte more than a list may have, at most. A pipe may
// have come in the file's place, and would be waited for.
func readBounded(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, cmp.Or(err, errors.New(path+" is not a file"))
	}
	return io.ReadAll(io.LimitReader(f, maxListSize+1))
}

// withoutPort leaves our own end of a connection, which is another each time,
// out of what went wrong with it.
func withoutPort(s string) string {
	own, other, ok := strings.Cut(s, "->")
	if !ok {
		return s
	}
	return own[:strings.LastIndexByte(own, ' ')+1] + other
}

// dnsList resolves a name.
type dnsList struct {
	resolver *net.Resolver
	name     string
	port     string // "": of the SRV records
}

func (d *dnsList) read(ctx context.Context) (*Members, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	var list []Member
	add := func(host, port string, weight int) error {
		addr, err := parseAddr(net.JoinHostPort(host, port))
		weight = min(max(weight, 1), maxWeight)
		i := slices.IndexFunc(list, func(m Member) bool { return m.Addr == addr })
		switch {
		case err != nil:
		case i >= 0: // a record may be given twice; their order says nothing
			list[i].Weight = max(list[i].Weight, weight)
		default:
			list = append(list, Member{Addr: addr, Weight: weight})
		}
		return err
	}
	if d.port == "" {
		_, records, err := d.resolver.LookupSRV(ctx, "", "", d.name)
		if err != nil {
			return nil, d.failed(err)
		}
		for _, r := range records {
			if err := add(r.Target, fmt.Sprint(r.Port), int(r.Weight)); err != nil {
				return nil, err
			}
		}
		return newMembers(0, list)
	}
	addrs, err := d.resolver.LookupNetIP(ctx, "ip", d.name)
	if err != nil {
		return nil, d.failed(err)
	}
	for _, a := range addrs {
		if err := add(a.String(), d.port, 1); err != nil {
			return nil, err
		}
	}
	return newMembers(0, list)
}

// failed is the error of a question, the same each time that it fails alike: who
// is told of changes is not to be told of each.
func (d *dnsList) failed(err error) error {
	if e := (*net.DNSError)(nil); errors.As(err, &e) {
		alike := *e
		alike.Err = withoutPort(e.Err)
		err = &alike
	}
	return fmt.Errorf("zone: members of %s: %w", d.name, err)
}
