//go:build cloud

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"thaw/catalog"
	"thaw/cluster"
	"thaw/fleet"
	"thaw/frontend"
	"thaw/functions"
	"thaw/host"
	"thaw/invokewire"
	"thaw/manager"
	"thaw/manifest"
	"thaw/network"
	"thaw/origin"
	"thaw/text"
	"thaw/worker"
)

const (
	// fleetLeases is the bucket of who is there: workers, managers, frontends and
	// who owns which function. A process that has died is forgotten after fleetTTL.
	fleetLeases = "fleet"
	fleetTTL    = 10 * time.Second
	// functionRecords holds functions, keyRecords access keys.
	functionRecords, keyRecords = "functions", "keys"
	// joinTime is how long a role waits for the records' server. It says so after
	// joinLook, or where nothing comes back after a try's 5 s; so does a machine that
	// joins, and gives up.
	joinTime = 30 * time.Second
	joinLook = time.Second
	// lastRequests is how long requests may go on after a role is told to end.
	lastRequests = 5 * time.Second
	// apiDoor is the gateway's port behind which the Lambda API is, for functions.
	apiDoor = 9000
	// roleHeaders bounds a request's headers in bytes, roleIdle how long a
	// connection between roles is kept without one.
	roleHeaders = 64 << 10
	roleIdle    = 5 * time.Minute
)

// Run serves records, leases and queues.
func (c *clusterServeCmd) Run(ctx context.Context, g *Globals) error {
	o := cluster.ServerOptions{
		Dir: g.fleetPath("cluster"), Listen: c.Listen, Name: c.Name, ClusterListen: c.Routes, Peers: c.Peers, Replicas: c.Replicas,
		Warn: func(line string) { g.logger().Warn(text.Line(line)) },
	}
	var err error
	if o.Token, err = g.fleetToken(); err != nil {
		return err
	}
	if o.TLS, err = c.secure(g); err != nil {
		return err
	}
	s, err := cluster.Serve(ctx, o)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(g.stdout, s.URL()); err != nil {
		return errors.Join(err, s.Close())
	}
	err = g.measured("cluster", s.Metrics(), func(ctx context.Context) error {
		<-ctx.Done()
		return nil
	})(ctx)
	return errors.Join(err, s.Close())
}

// secure is how a server of records is spoken to: all in one way, plainly if all
// is on loopback. It begins a fleet if this machine belongs to none.
func (c *clusterServeCmd) secure(g *Globals) (config *tls.Config, err error) {
	for _, address := range []string{c.Listen, c.Routes} {
		if address == "" || fleet.Loopback(address) {
			continue
		}
		if err := g.fleetDir().Certify(); err != nil {
			return nil, err
		}
		if config, err = g.fleetDir().Secure(address); err != nil {
			return nil, err
		}
	}
	return config, nil
}

// joined is a role in the fleet.
type joined struct {
	token  string
	url    string // of the records' server
	conn   *cluster.Conn
	client *http.Client // speaks to other roles
}

// entered is a role that the others can find: it knows who is there, and listens
// without having said where.
type entered struct {
	*joined
	fleet  *cluster.Leases
	socket net.Listener
}

// address is where the role listens.
func (e *entered) address() string { return e.socket.Addr().String() }

// leave undoes enter. The role's server may have closed the socket before.
func (e *entered) leave() {
	e.conn.Close()
	_ = e.socket.Close()
}

// enter joins the fleet as a role that others ask. The caller leaves.
func (f *fleetFlags) enter(ctx context.Context, g *Globals) (*entered, error) {
	return f.enterAs(ctx, g, func(ctx context.Context, url string) (net.Listener, error) {
		address, err := listensAt(ctx, f.Listen, url)
		if err != nil {
			return nil, err
		}
		return g.fleetDir().Listen(ctx, address)
	})
}

// enterAs joins the fleet as one that listens in its own way; url is the
// records' server's.
func (f *fleetFlags) enterAs(ctx context.Context, g *Globals, listen func(ctx context.Context, url string) (net.Listener, error)) (*entered, error) {
	j, err := f.join(ctx, g)
	if err != nil {
		return nil, err
	}
	e := &entered{joined: j}
	if e.fleet, err = j.leases(ctx); err == nil {
		if e.socket, err = listen(ctx, j.url); err != nil {
			err = fmt.Errorf("--listen: %w", err)
		}
	}
	if err != nil {
		j.conn.Close()
		return nil, err
	}
	return e, nil
}

// former ends a worker's lease, if it is of a process that was at this address
// before: that has died.
func (e *entered) former(ctx context.Context, key string) bool {
	var s invokewire.WorkerState
	held, err := e.fleet.Get(ctx, key)
	return err == nil && json.Unmarshal(held.Value, &s) == nil && s.Address == e.address() && e.fleet.End(ctx, held) == nil
}

// join finds the records' server. The caller closes conn.
func (f *fleetFlags) join(ctx context.Context, g *Globals) (*joined, error) {
	url, err := f.clusterURL(g)
	if err != nil {
		return nil, err
	}
	token, err := g.fleetToken()
	if err != nil {
		return nil, err
	}
	secure, err := g.towardsCluster(url)
	if err != nil {
		return nil, err
	}
	dial := func(d time.Duration) (*cluster.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		return cluster.DialTLS(ctx, url, token, secure)
	}
	conn, err := dial(joinLook)
	if errors.Is(err, cluster.ErrUnavailable) && ctx.Err() == nil {
		g.logger().Warn("the records' server is not reached, and tried again for "+joinTime.String(), "cause", text.Line(err.Error()))
		conn, err = dial(joinTime)
	}
	if err != nil {
		return nil, fmt.Errorf("the records' server: %w", err)
	}
	return &joined{token, url, conn, g.fleetDir().Client()}, nil
}

// leases opens the bucket of who is there.
func (m *joined) leases(ctx context.Context) (*cluster.Leases, error) {
	return m.conn.Leases(ctx, fleetLeases, fleetTTL)
}

// serveRole answers requests while run works, and says the address. When either
// ends, or ctx does, so does the other.
func (g *Globals) serveRole(ctx context.Context, l net.Listener, h http.Handler, run func(context.Context) error) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: roleIdle, MaxHeaderBytes: roleHeaders,
		ErrorLog: log.New(serverLog{g.logger()}, "", 0), ConnContext: frontend.ConnContext,
	}
	if _, err := fmt.Fprintln(g.stdout, l.Addr()); err != nil {
		return errors.Join(err, l.Close())
	}
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	work.Go(func() error {
		<-ctx.Done()
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastRequests)
		defer cancel()
		if err := server.Shutdown(late); err != nil {
			return server.Close()
		}
		return nil
	})
	work.Go(func() error {
		err := run(ctx)
		if err == nil && ctx.Err() == nil {
			err = errors.New("it has nothing more to do")
		}
		return err
	})
	if err := work.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// serverLog is what a role's server has to say, but for what strangers do wrong.
type serverLog struct{ *slog.Logger }

// Write takes a line.
func (l serverLog) Write(line []byte) (int, error) {
	if !bytes.Contains(line, []byte("TLS handshake error")) {
		l.Warn(text.Line(string(line)))
	}
	return len(line), nil
}

// Run decides which instance an invoke gets, and where instances start.
func (c *managerCmd) Run(ctx context.Context, g *Globals) error {
	shareProcessors()
	f, err := c.enter(ctx, g)
	if err != nil {
		return err
	}
	defer f.leave()
	records, err := f.conn.Records(ctx, functionRecords)
	if err != nil {
		return err
	}
	m := manager.New(manager.Options{
		Address: f.address(), Token: f.token, Leases: f.fleet, Client: f.client, Functions: functions.NewStore(records).Watch, Idle: c.Idle, Log: g.logger(),
	})
	return g.serveRole(ctx, f.socket, m.Handler(), g.measured("manager", m.Metrics(), m.Run))
}

// shareProcessors leaves half of the processors to functions: threads of a role
// that look for work take them from whom the work is for. On two processors, an
// invoke takes a frontend and a worker a quarter less time with one thread each.
func shareProcessors() { runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2)) }

// Run runs instances.
func (c *workerCmd) Run(ctx context.Context, g *Globals) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("a worker needs root, for mounts and containers: try with sudo")
	}
	shareProcessors()
	f, err := c.enter(ctx, g)
	if err != nil {
		return err
	}
	defer f.leave()
	if err := f.access(ctx, g); err != nil {
		return err
	}
	o, err := c.options(g)
	if err != nil {
		return err
	}
	defer o.Host.Close()
	o.Address, o.Token = f.address(), f.token
	if o.Network, err = c.network(g); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, o.Network.Close()) }()
	o.Register = func(ctx context.Context, key string, value []byte) (worker.Registration, error) {
		lease, err := f.fleet.Take(ctx, key, value)
		if errors.Is(err, cluster.ErrExists) && f.former(ctx, key) {
			lease, err = f.fleet.Take(ctx, key, value)
		}
		if err != nil {
			return nil, err // and no lease that is nil in an interface
		}
		return lease, nil
	}
	pins, err := c.pinner(ctx, g, f.joined, &o)
	if err != nil {
		return err
	}
	w, err := worker.New(o)
	if err != nil {
		return err
	}
	return g.serveRole(ctx, f.socket, w.Handler(), g.measured("worker", w.Metrics(), func(ctx context.Context) error {
		var beside sync.WaitGroup
		defer beside.Wait()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		beside.Go(func() { pins.run(ctx) })
		return w.Run(ctx)
	}))
}

// network is what functions reach: the outside, but nothing private, and through
// a door the Lambda API.
func (c *workerCmd) network(g *Globals) (*network.Network, error) {
	o := network.Options{State: g.State, Doors: map[uint16]string{}, Dial: g.fleetDir().Door()}
	if c.API == "" {
		c.API = g.membership().API
	}
	if c.API != "" {
		o.Doors[apiDoor] = c.API
	}
	for _, text := range c.Allow {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("--allow %s: want a range of addresses, such as 10.1.2.0/24 or 10.1.2.3/32", text)
		}
		o.Allow = append(o.Allow, prefix)
	}
	if c.Range != "" {
		var err error
		if o.CIDR, err = netip.ParsePrefix(c.Range); err != nil {
			return nil, fmt.Errorf("--range %s: want a range of addresses, such as 100.64.0.0/20", c.Range)
		}
	}
	return network.Open(o)
}

// checkDisk refuses a limit with which no instance would ever start; 0 is none.
func checkDisk(limit byteSize) error {
	if limit == 0 || limit >= worker.LeastDisk {
		return nil
	}
	return fmt.Errorf("--disk %s: want %s at least: with less no function starts", limit, byteSize(worker.LeastDisk))
}

// options are what does not depend on the fleet.
func (c *workerCmd) options(g *Globals) (o worker.Options, err error) {
	if err := checkDisk(c.Disk); err != nil {
		return o, err
	}
	o = worker.Options{ID: c.ID, State: g.State, Runtime: c.Runtime, Memory: int64(c.Memory), Disk: int64(c.Disk), Logger: g.logger(), TTL: fleetTTL}
	if o.ID = cmp.Or(o.ID, g.membership().Worker); o.ID == "" {
		if o.ID, err = os.Hostname(); err != nil {
			return o, err
		}
	}
	if c.CABundle != "" {
		if o.CABundle, err = os.ReadFile(c.CABundle); err != nil {
			return o, err
		}
	}
	if o.Host, err = host.Open(g.State); err != nil {
		return o, err
	}
	if o.Init, err = g.part("thaw-init"); err != nil {
		return o, err
	}
	if o.Agent, err = g.part("thaw-agent"); err != nil {
		return o, err
	}
	o.Fetcher = func(ctx context.Context) (*host.Use, error) {
		fetcher, err := g.fetcherCommand()
		if err != nil {
			return nil, err
		}
		return o.Host.UseFetcher(ctx, fetcher)
	}
	o.Image = func(ctx context.Context, tenant, id, root string) (host.Image, []byte, error) {
		s, err := g.forTenant(tenant).findImage(ctx, id, root)
		if err != nil {
			return host.Image{}, nil, err
		}
		return host.Image{
			ID: s.id.String(), Name: s.name, Root: s.root, Deadline: g.OriginDeadline, Manifest: s.sealed, DataKey: s.dataKey,
			Trace: s.trace, Prefetch: min(mostAhead, int64(g.CacheSize)/2),
		}, s.Config, nil
	}
	o.KeepTrace = func(ctx context.Context, tenant, image, root string, sealed []byte) error {
		return g.forTenant(tenant).storeTrace(ctx, root, image, sealed)
	}
	return o, nil
}

// forTenant gives the flags with another tenant and its key.
func (g *Globals) forTenant(tenant string) *Globals {
	if tenant == g.Tenant {
		return g
	}
	other := *g
	other.Tenant, other.Key = tenant, fileURL(g.State, "keys", tenant)
	return &other
}

// usualAccount is the account of the tenant that commands have by default, and
// whose functions thaw up's user has.
const usualAccount = "000000000000"

// tenantOf gives the tenant of an account: those of other accounts are called as
// they are.
func (g *Globals) tenantOf(account string) string {
	if account == usualAccount {
		return g.Tenant
	}
	return account
}

// findImage finds what a function version was made into, and opens its manifest.
// Neither ever changes: what is on this machine is not asked for again.
func (g *Globals) findImage(ctx context.Context, id, root string) (*startable, error) {
	ref, l := catalog.Reference{Image: id, Root: root}, g.local()
	if _, err := os.Stat(l.manifest(root, id)); err != nil {
		if err := g.fetchManifest(ctx, l, ref); err != nil {
			return nil, err
		}
	}
	s, err := g.openLocal(ctx, l, id, ref)
	if err == nil {
		s.trace = readTrace(l.trace(root, id))
	}
	return s, err
}

// fetchManifest brings an image's manifest, and what starts have recorded of it,
// to this machine.
func (g *Globals) fetchManifest(ctx context.Context, l local, ref catalog.Reference) error {
	ctx, cancel := context.WithTimeout(ctx, g.OriginDeadline)
	defer cancel()
	store, err := g.open(ctx, false)
	if err != nil {
		return err
	}
	defer store.Close()
	g.askTrace(ctx, store, ref)()
	data, err := store.Manifests(ref.Root, g.Tenant).Get(ctx, ref.Image)
	if err == nil {
		_, err = parseManifest(bytes.Clone(data), ref.Image)
	}
	if errors.Is(err, origin.ErrNotFound) || errors.Is(err, origin.ErrCorrupt) || errors.Is(err, manifest.ErrCorrupt) {
		err = fmt.Errorf("%w: %w", worker.ErrNoImage, err)
	}
	if err == nil {
		err = keep(l.manifest(ref.Root, ref.Image), data)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", ref.Image, err)
	}
	return nil
}
