//go:build cloud

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"thaw/builder"
	"thaw/fleet"
	"thaw/text"
)

// addresses are where roles listen, as they have said. A role that is started
// again is asked to listen there again.
type addresses struct {
	mu sync.Mutex
	at map[string]string // guarded by mu
}

func (a *addresses) set(role, address string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at[role] = address
}

func (a *addresses) get(role, otherwise string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := a.at[role]; at != "" {
		return at
	}
	return otherwise
}

// platformUp is a platform that comes up.
type platformUp struct {
	*upCmd
	*supervisor
	g     *Globals
	plan  plan
	ports fleetPorts
	at    addresses
}

// fleetPorts are where roles listen that other machines' roles speak to.
type fleetPorts struct{ cluster, manager, worker string }

// fleetPorts are on loopback, unless the platform is to be reached by others.
func (c *upCmd) fleetPorts() (fleetPorts, error) {
	if c.Fleet == "" {
		return fleetPorts{anyLoopback, anyLoopback, anyLoopback}, nil
	}
	host, text, err := net.SplitHostPort(c.Fleet)
	port, perr := strconv.ParseUint(text, 10, 16)
	if err != nil || perr != nil || port+2 > 65535 || fleet.Loopback(c.Fleet) {
		return fleetPorts{}, fmt.Errorf("--fleet %s: want HOST:PORT, an address of this machine that others reach, not loopback", c.Fleet)
	}
	at := func(n uint64) string {
		if port == 0 {
			n = 0
		}
		return net.JoinHostPort(host, strconv.FormatUint(port+n, 10))
	}
	ports := fleetPorts{at(0), at(1), at(2)}
	for _, taken := range []string{ports.cluster, ports.manager, ports.worker} {
		if overlap(c.Listen, taken) {
			return fleetPorts{}, fmt.Errorf("--listen %s: --fleet %s takes this port, it and the next two: choose another", c.Listen, c.Fleet)
		}
	}
	return ports, nil
}

// overlap reports whether nobody can listen at both addresses.
func overlap(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	all := func(host string) bool { return host == "" || net.ParseIP(host).IsUnspecified() }
	return errA == nil && errB == nil && portA == portB && portA != "0" && (hostA == hostB || all(hostA) || all(hostB))
}

// certify makes sure that this machine has the certificates that it needs to
// listen where it is to.
func (c *upCmd) certify(g *Globals) error {
	var hosts []string
	secure, err := c.tls()
	if err != nil {
		return err
	}
	if secure == nil && !fleet.Loopback(c.Listen) {
		host, _, err := net.SplitHostPort(c.Listen)
		if err != nil {
			return fmt.Errorf("--listen %s: want HOST:PORT, such as 127.0.0.1:9000", c.Listen)
		}
		if ip := net.ParseIP(host); host == "" || ip.IsUnspecified() {
			return fmt.Errorf("--listen %s: want the address that clients use, for a certificate of the fleet's own authority; or give --tls-cert and --tls-key", c.Listen)
		}
		hosts = append(hosts, host)
	}
	if c.Fleet == "" && hosts == nil {
		return nil
	}
	return g.fleetDir().Certify(hosts...)
}

// Run brings the platform up, and keeps it until ctx ends.
func (c *upCmd) Run(ctx context.Context, g *Globals) error {
	if os.Geteuid() != 0 {
		return errors.New("up needs root, for mounts and containers: try with sudo")
	}
	if !fleet.Loopback(c.Registry) {
		return fmt.Errorf("--registry %s: it asks nobody who they are: it listens on loopback only, such as 127.0.0.1:9005", c.Registry)
	}
	if !accounts.MatchString(c.Account) {
		return fmt.Errorf("--account %s: want twelve digits", c.Account)
	}
	if err := checkDisk(c.Disk); err != nil {
		return err
	}
	if m := g.membership(); m.Cluster != "" {
		return fmt.Errorf("this machine has joined the fleet of %s: run roles of that here, such as thaw worker, or thaw fleet leave first", m.at())
	}
	ports, err := c.fleetPorts()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(g.fleetPath(), 0o700); err != nil {
		return err
	}
	if runtimes, err := builder.LoadRuntimes(c.runtimes(g)); err != nil {
		return err
	} else if err := runtimes.Check(ctx); err != nil {
		return err
	}
	lock, err := os.OpenFile(g.fleetPath("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("a platform runs already with --state %s: thaw env tells where", g.State)
	}
	if _, err := g.fleetToken(); err != nil {
		return err
	}
	if err := c.certify(g); err != nil {
		return err
	}
	p, err := c.plan(g.State)
	if err != nil {
		return err
	}
	if g.Zone == "" {
		if err := g.sweepNodes(p.nodes); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	up := &platformUp{upCmd: c, supervisor: newSupervisor(self, g.stderr, g.logger()), g: g, plan: p, ports: ports, at: addresses{at: map[string]string{}}}
	return up.run(func() error { return up.serve(ctx) })
}

// serve starts all roles, says so, and waits.
func (up *platformUp) serve(ctx context.Context) error {
	for _, r := range up.roles() {
		r.said = func(address string) { up.at.set(r.name, address) }
		if err := up.start(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	record := fleetRecord{
		Cluster: up.at.get("cluster", ""), Registry: up.at.get("builder", ""), Region: up.Region, Account: up.Account, Zone: cmp.Or(up.g.Zone, up.at.get("zone", "")), PID: os.Getpid(),
	}
	record.Endpoint, record.CA = up.endpoint()
	pair, err := up.g.firstKey(ctx, record)
	if err != nil {
		return err
	}
	path := up.g.fleetPath(platformFile)
	if err := writeJSON(path, record); err != nil {
		return err
	}
	defer os.Remove(path)
	if err := up.screen(record, pair); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// endpoint is the URL of the Lambda API, and the file with the authority of its
// certificate, if that is the fleet's.
func (up *platformUp) endpoint() (url, ca string) {
	at := up.at.get("frontend", "")
	switch {
	case up.TLSCert != "":
		return "https://" + at, ""
	case fleet.Loopback(at):
		return "http://" + at, ""
	}
	return "https://" + at, up.g.fleetPath("ca.pem")
}

// roles are in the order in which they need each other.
func (up *platformUp) roles() []role {
	g := up.g
	common := func(verb string, more ...string) func() []string {
		return func() []string {
			args := []string{
				"--state=" + g.State, "--origin=" + g.Origin, "--tenant=" + g.Tenant, "--key=" + g.Key, "--cache=" + g.Cache, "--cache-size=" + g.CacheSize.String(), "--log-format=" + g.LogFormat,
				"--origin-deadline=" + g.OriginDeadline.String(), "--origin-requests=" + strconv.Itoa(g.OriginRequests),
			}
			for flag, file := range map[string]string{"--secret=": g.Secret, "--config=": string(g.Config)} {
				if file != "" { // an empty path would be made one of a folder
					args = append(args, flag+file)
				}
			}
			zone := *g
			if zone.Zone == "" {
				zone.Zone = up.at.get("zone", "")
			}
			args = append(append(args, zone.zoneArgs()...), verb)
			if verb != "cluster" {
				args = append(args, "--cluster="+up.at.get("cluster", ""))
			}
			return append(args, more...)
		}
	}
	listen := func(name, first string, r role) role {
		args := r.args
		r.name, r.args = name, func() []string { return append(args(), "--listen="+up.at.get(name, first)) }
		return r
	}
	var all []role
	if up.plan.nodes > 0 && g.Zone == "" {
		all = append(all, role{name: "zone", args: func() []string {
			return []string{
				"--state=" + g.State, "--log-format=" + g.LogFormat, "zone", "--dev=" + strconv.Itoa(up.plan.nodes),
				"--memory=" + byteSize(up.plan.nodeMemory).String(), "--flash-size=" + byteSize(up.plan.nodeFlash).String(),
			}
		}})
	}
	cluster := role{name: "cluster", args: func() []string {
		_, address, _ := strings.Cut(up.at.get("cluster", "://"+up.ports.cluster), "://")
		return append(common("cluster")(), "--listen="+address)
	}}
	if up.Metrics != "" {
		all = append(all, role{name: "metrics", args: func() []string {
			return []string{"--state=" + g.State, "--log-format=" + g.LogFormat, "metrics", "--listen=" + up.at.get("metrics", up.Metrics)}
		}})
	}
	runtimes := "--runtimes=" + up.runtimes(up.g)
	return append(all, cluster,
		listen("builder", up.Registry, role{args: common("builder", runtimes, "--max-image="+up.MaxImage.String(), "--account="+up.Account)}),
		listen("manager", up.ports.manager, role{args: common("manager")}),
		listen("frontend", up.Listen, role{args: common("frontend", append(up.tlsArgs(), "--s3="+up.S3, "--region="+up.Region, "--url-domain="+up.URLDomain, "--network="+up.Network, runtimes)...)}),
		listen("worker", up.ports.worker, role{args: func() []string {
			args := common("worker", "--memory="+byteSize(up.plan.instances).String(), "--runtime="+up.Runtime, "--api="+up.at.get("frontend", ""))()
			for _, cidr := range up.Allow {
				args = append(args, "--allow="+cidr)
			}
			if up.Disk > 0 {
				args = append(args, "--disk="+up.Disk.String())
			}
			if up.CABundle != "" {
				args = append(args, "--ca-bundle="+up.CABundle)
			}
			return args
		}}),
	)
}

// tlsArgs hands on how the door is spoken to.
func (c *serverTLS) tlsArgs() (args []string) {
	for flag, file := range map[string]string{"--tls-cert=": c.TLSCert, "--tls-key=": c.TLSKey, "--tls-client-ca=": c.TLSClientCA} {
		if file != "" {
			args = append(args, flag+file)
		}
	}
	return args
}

// runtimes is the path of the map of managed runtimes.
func (c *upCmd) runtimes(g *Globals) string {
	return cmp.Or(c.Runtimes, filepath.Join(g.State, "runtimes.toml"))
}

// screen says what is taken, where it listens, and what to try next.
func (up *platformUp) screen(r fleetRecord, pair keyPair) error {
	_, port, _ := net.SplitHostPort(r.Registry)
	others := ""
	if up.Fleet != "" {
		others = "\n  fleet     " + up.g.stateHint() + "thaw fleet invite FILE, for each other machine"
	}
	zone := "no zone cache"
	if n := int64(up.plan.nodes); n > 0 && up.g.Zone == "" {
		zone = fmt.Sprintf("%d zone nodes with %s of memory and %s of disk", n, text.Bytes(n*up.plan.nodeMemory), text.Bytes(n*up.plan.nodeFlash))
	} else if up.g.Zone != "" {
		zone = "the zone " + up.g.Zone
	}
	metrics := ""
	if up.Metrics != "" {
		metrics = fmt.Sprintf("  metrics   http://%s/metrics\n", up.at.get("metrics", up.Metrics))
	}
	_, err := fmt.Fprintf(up.g.stdout, `Thaw is up: %s
  takes     up to %s for functions, %s, %s of chunks in %s
  registry  docker push localhost:%s/NAME
  key       %s
  secret    %s%s
%s
In another shell:
  eval "$(%sthaw env)"
  thaw deploy hello docker://IMAGE
  aws lambda invoke --function-name hello /dev/stdout
`, r.Endpoint, text.Bytes(up.plan.instances), zone, text.Bytes(int64(up.g.CacheSize)), up.g.Cache, port, pair.ID, pair.Secret, others, metrics, up.g.stateHint())
	return err
}

// stateHint is what other shells have to say besides, unless it is the default.
func (g *Globals) stateHint() string {
	if usual, err := defaultState(); err == nil && usual == g.State {
		return ""
	}
	return "THAW_STATE=" + shellQuote(g.State) + " "
}
