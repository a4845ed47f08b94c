//go:build cloud

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/aws/smithy-go"

	"thaw/builder"
	"thaw/events"
	"thaw/fleet"
	"thaw/frontend"
	"thaw/functions"
	"thaw/origin/cloud"
	"thaw/text"
	"thaw/worker"
)

// noteOfUp marks the key that thaw up makes for its own user.
const noteOfUp = "thaw up"

// Run is the door: the Lambda API and what belongs to it.
func (c *frontendCmd) Run(ctx context.Context, g *Globals) error {
	shareProcessors()
	scheme := "http://"
	f, err := c.enterAs(ctx, g, func(ctx context.Context, _ string) (net.Listener, error) {
		address := cmp.Or(c.Listen, anyLoopback)
		config, err := c.secure(g, address)
		if err != nil {
			return nil, err
		}
		if config != nil {
			scheme = "https://"
		}
		return fleet.Listen(ctx, address, config)
	})
	if err != nil {
		return err
	}
	defer f.leave()
	runtimes, err := builder.LoadRuntimes(c.Runtimes)
	if err != nil {
		return err
	}
	records, err := f.conn.Records(ctx, functionRecords)
	if err != nil {
		return err
	}
	keyed, err := f.conn.Records(ctx, keyRecords)
	if err != nil {
		return err
	}
	store := functions.NewStore(records)
	store.Warn = g.damaged
	queue, err := events.Open(ctx, f.conn, events.Options{
		Policy: frontend.EventPolicy(store), Grace: lastRequests, Warn: func(line string) { g.logger().Warn(text.Line(line)) },
	})
	if err != nil {
		return err
	}
	objects, err := c.objects(ctx)
	if err != nil {
		return err
	}
	held := newTenantKeys(g)
	defer held.Close()
	access := frontend.NewKeyStore(keyed, held.keeper)
	access.Warn = g.damaged
	if c.Endpoint == "" {
		c.Endpoint = scheme + f.address()
	}
	door := frontend.New(frontend.Options{
		ID: "frontend-" + f.address(), Token: f.token, Region: c.Region, Endpoint: c.Endpoint, URLDomain: c.URLDomain, Leases: f.fleet, Store: store, Client: f.client,
		Inside: "http://" + net.JoinHostPort(worker.GatewayName, strconv.Itoa(apiDoor)), NoNetwork: c.Network == "none",
		Keys: access, Queue: queue, Packages: packages{g}, Runtimes: runtimeNames(runtimes),
		Tenant: g.tenantOf, Keeper: held.keeper, Objects: objects, Scratch: g.fleetPath(), Log: g.logger(),
	})
	return g.serveRole(ctx, f.socket, door.Handler(), g.measured("frontend", append(door.Metrics(), queue.Metrics()...), door.Run))
}

// objects opens packages in the S3 service that is named, if one is.
func (f s3Flags) objects(ctx context.Context) (func(ctx context.Context, bucket, key, version string) (io.ReadCloser, int64, error), error) {
	if f.S3 == "" {
		return nil, nil
	}
	u, err := url.Parse(f.S3)
	if err != nil {
		return nil, errors.New("--s3: it is no URL")
	}
	o, err := cloud.OpenObjects(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("--s3: %w", err)
	}
	return func(ctx context.Context, bucket, key, version string) (io.ReadCloser, int64, error) {
		body, size, err := o.Get(ctx, bucket, key, version)
		var said smithy.APIError
		switch {
		case errors.As(err, &said):
			err = &frontend.ObjectError{Code: said.ErrorCode(), Message: text.Line(said.ErrorMessage())}
		case errors.Is(err, cloud.ErrOtherBucket):
			err = &frontend.ObjectError{Code: "AccessDenied", Message: err.Error()}
		}
		return body, size, err
	}, nil
}

// damaged tells of a record that cannot be read.
func (g *Globals) damaged(err error) { g.logger().Warn(text.Line(err.Error())) }

// secure is how the door is spoken to at an address: with the certificate of the
// flags, else plainly on loopback, else with this machine's.
func (c *serverTLS) secure(g *Globals, address string) (*tls.Config, error) {
	config, err := c.tls()
	switch {
	case err != nil:
		return nil, err
	case config != nil:
		config.NextProtos = []string{"http/1.1"}
		return config, nil
	case fleet.Loopback(address):
		return nil, nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if config, err = g.fleetDir().Public(host); err != nil {
		return nil, fmt.Errorf("%s is not loopback, and takes TLS: give --tls-cert and --tls-key, or: %w", address, err)
	}
	return config, nil
}

// runtimeNames are those that packages may ask for: what the operator has mapped,
// and those whose packages bring all that they need.
func runtimeNames(mapped builder.Runtimes) []string {
	names := slices.AppendSeq([]string{"provided", "provided.al2", "provided.al2023"}, maps.Keys(mapped))
	slices.Sort(names)
	return slices.Compact(names)
}

// keyStore opens the platform's access keys, for f.
func (g *Globals) keyStore(ctx context.Context, url string, f func(*frontend.KeyStore) error) error {
	m, err := (&fleetFlags{Cluster: url}).join(ctx, g)
	if err != nil {
		return err
	}
	defer m.conn.Close()
	records, err := m.conn.Records(ctx, keyRecords)
	if err != nil {
		return err
	}
	held := newTenantKeys(g)
	defer held.Close()
	s := frontend.NewKeyStore(records, held.keeper)
	s.Warn = g.damaged
	return f(s)
}

// firstKey gives the key pair of this machine's user, and makes one if there is
// none, it was revoked, it is another account's, or its record is damaged.
func (g *Globals) firstKey(ctx context.Context, r fleetRecord) (pair keyPair, err error) {
	path := g.fleetPath("credentials")
	if err := readJSON(path, &pair); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pair, err
	}
	err = g.keyStore(ctx, r.Cluster, func(s *frontend.KeyStore) error {
		if pair.ID != "" {
			k, err := s.Lookup(ctx, pair.ID)
			if err == nil && k.Account != r.Account {
				err = frontend.ErrNoKey
			}
			if errors.Is(err, frontend.ErrDamagedKey) {
				err = cmp.Or(s.Revoke(ctx, pair.ID), frontend.ErrNoKey)
			}
			if !errors.Is(err, frontend.ErrNoKey) {
				return err
			}
		}
		k, err := s.Create(ctx, r.Account, noteOfUp)
		if err != nil {
			return err
		}
		pair = keyPair{k.ID, k.Secret}
		return writeJSON(path, pair)
	})
	return pair, err
}

// Run makes a key pair.
func (c *keysCreateCmd) Run(ctx context.Context, g *Globals) error {
	return g.keyStore(ctx, "", func(s *frontend.KeyStore) error {
		k, err := s.Create(ctx, g.account(c.Account), "")
		if err != nil {
			return err
		}
		if c.JSON {
			return json.NewEncoder(g.stdout).Encode(map[string]string{"id": k.ID, "secret": k.Secret, "account": k.Account})
		}
		_, err = fmt.Fprintf(g.stdout, "key      %s\nsecret   %s\naccount  %s\n", k.ID, k.Secret, k.Account)
		return err
	})
}

// Run lists keys, without their secrets.
func (c *keysListCmd) Run(ctx context.Context, g *Globals) error {
	return g.keyStore(ctx, "", func(s *frontend.KeyStore) error {
		all, err := s.List(ctx, "")
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(g.stdout, 0, 0, 2, ' ', 0)
		if !c.JSON {
			fmt.Fprintln(w, "KEY\tACCOUNT\tCREATED\tNOTE")
		}
		for _, k := range all {
			if c.JSON {
				err = json.NewEncoder(g.stdout).Encode(map[string]any{"id": k.ID, "account": k.Account, "created": k.Created, "note": k.Note})
			} else {
				_, err = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", k.ID, k.Account, k.Created.UTC().Format(time.DateTime), text.Line(k.Note))
			}
			if err != nil {
				return err
			}
		}
		return w.Flush()
	})
}

// Run makes a key pair worthless. If it was this machine's own, there is another
// at once: this program's verbs sign with it.
func (c *keysRevokeCmd) Run(ctx context.Context, g *Globals) error {
	if err := g.keyStore(ctx, "", func(s *frontend.KeyStore) error { return s.Revoke(ctx, c.ID) }); err != nil {
		return err
	}
	r, err := g.fleet()
	if errors.Is(err, errNoPlatform) { // thaw up's is on another machine
		return nil
	}
	own, kerr := g.credentials()
	if err = cmp.Or(err, kerr); err != nil || own.ID != c.ID {
		return err
	}
	if own, err = g.firstKey(ctx, r); err != nil {
		return fmt.Errorf("it is revoked; it was thaw up's own, which makes another when it starts again: %w", err)
	}
	_, err = fmt.Fprintf(g.stdout, "%s was thaw up's own, which has %s now: shells that used it need eval \"$(%sthaw env)\" again\n", c.ID, own.ID, g.stateHint())
	return err
}
