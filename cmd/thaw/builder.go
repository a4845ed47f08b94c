//go:build cloud

package main

import (
	"cmp"
	"context"
	"fmt"
	"net"

	"golang.org/x/sync/errgroup"

	"thaw/builder"
	"thaw/cluster"
	"thaw/convert"
	"thaw/fleet"
	"thaw/functions"
	"thaw/registry"
)

const (
	// buildRecords is the bucket of builders' notes, loginRecords that of
	// credentials for registries.
	buildRecords, loginRecords = "builds", "logins"
)

// Run makes devices of what is deployed, and serves the registry inside.
func (c *builderCmd) Run(ctx context.Context, g *Globals) error {
	f, err := c.enterAs(ctx, g, c.listen)
	if err != nil {
		return err
	}
	defer f.leave()
	runtimes, err := builder.LoadRuntimes(c.Runtimes)
	if err != nil {
		return err
	}
	records := map[string]*cluster.Records{}
	for _, name := range []string{functionRecords, buildRecords, loginRecords, baseRecords} {
		if records[name], err = f.conn.Records(ctx, name); err != nil {
			return err
		}
	}
	store := functions.NewStore(records[functionRecords])
	store.Warn = g.damaged
	images, err := registry.New(g.fleetPath("registry"), registry.Options{
		Needed: func(ctx context.Context) (map[string]bool, error) { return builder.Needed(ctx, store, runtimes) }, Logger: g.logger(),
	})
	if err != nil {
		return fmt.Errorf("the registry inside: %w", err)
	}
	held := newTenantKeys(g)
	defer held.Close()
	logins := builder.NewLogins(records[loginRecords], held.keeper)
	makes := &builder.Images{
		Convert: func(ctx context.Context, account string, o convert.Options) (*convert.Result, error) {
			return g.forTenant(g.tenantOf(account)).convertQuietly(ctx, o)
		},
		Zip: packages{g}.open, Login: logins.Get, PlainHTTP: innerNames(f.address()),
		Local: func(account string) bool { return account == c.Account }, Runtimes: runtimes, MaxImage: int64(c.MaxImage), Prime: g.Zone != "",
	}
	b := builder.New(builder.Options{
		ID: "builder-" + f.address(), Functions: store, Leases: f.fleet, TTL: fleetTTL, Records: records[buildRecords],
		Convert: makes.Build, Kept: own{kept{g}, records[buildRecords]}, Logger: g.logger(),
	})
	bases, err := g.zoneBases(records[baseRecords])
	if err != nil {
		return err
	}
	if bases != nil {
		defer bases.zone.Close()
	}
	run := func(ctx context.Context) error {
		all, ctx := errgroup.WithContext(ctx)
		all.Go(func() error { return images.Run(ctx) })
		all.Go(func() error { return b.Run(ctx) })
		if bases != nil {
			all.Go(func() error {
				bases.run(ctx)
				return nil
			})
		}
		return all.Wait()
	}
	return g.serveRole(ctx, f.socket, images, g.measured("builder", b.Metrics(), run))
}

// listen listens for clients of the registry inside, which asks nobody who they are.
func (c *builderCmd) listen(ctx context.Context, _ string) (net.Listener, error) {
	address := cmp.Or(c.Listen, anyLoopback)
	if !fleet.Loopback(address) {
		return nil, fmt.Errorf("%s: the registry inside asks nobody who they are: it listens on loopback only, such as 127.0.0.1:9005", address)
	}
	l, err := fleet.Listen(ctx, address, nil)
	if err != nil {
		return nil, fmt.Errorf("the registry inside (thaw up --registry): %w", err)
	}
	return l, nil
}

// innerNames are those by which clients know the registry inside.
func innerNames(address string) []string {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return []string{address}
	}
	return []string{net.JoinHostPort("localhost", port), net.JoinHostPort("127.0.0.1", port)}
}
