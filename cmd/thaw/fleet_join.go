//go:build cloud

package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"thaw/cluster"
	"thaw/fleet"
	"thaw/invokewire"
	"thaw/metrics"
	"thaw/text"
)

const (
	// anyLoopback is where roles listen that nobody else has to reach.
	anyLoopback = "127.0.0.1:0"
	// maxInvitation bounds an invitation in bytes.
	maxInvitation = 64 << 10
	// expiresSoon is from when on a machine's certificate is warned of.
	expiresSoon = 30 * 24 * time.Hour
)

// invitation is what makes a machine one of a fleet. Its token and key are
// secrets.
type invitation struct {
	Cluster string `json:"cluster"`       // URL of the records' server
	API     string `json:"api,omitempty"` // host:port of the Lambda API, if other machines reach it
	Token   string `json:"token"`
	CA      string `json:"ca"`      // PEM
	Machine string `json:"machine"` // PEM of a certificate and its key
}

// membership is what a machine that has joined keeps of its invitation, without
// the secrets.
type membership struct {
	Cluster string `json:"cluster"`
	API     string `json:"api,omitempty"`
	Worker  string `json:"worker"` // id of the machine's worker: hosts of one name may join
}

// at is how people call the machine that has invited this one.
func (m membership) at() string {
	first, _, _ := strings.Cut(m.Cluster, ",")
	return strings.TrimPrefix(first, "tls://")
}

// Format hides the secrets from every verb.
func (i invitation) Format(f fmt.State, _ rune) { fmt.Fprint(f, "invitation to "+i.Cluster) }

// fleetDir has the machine's certificates.
func (g *Globals) fleetDir() fleet.Dir { return fleet.Dir(g.fleetPath()) }

// membership is what this machine has joined, or nothing.
func (g *Globals) membership() (m membership) {
	if !g.fleetDir().Began() {
		_ = readJSON(g.fleetPath(joinedFile), &m)
	}
	return m
}

// towardsCluster is how a records' server is spoken to.
func (g *Globals) towardsCluster(urls string) (*tls.Config, error) {
	secure := false
	for each := range strings.SplitSeq(urls, ",") {
		u, err := url.Parse(each)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls":
			return nil, fmt.Errorf("--cluster %s: want nats://HOST:PORT on loopback, else tls://HOST:PORT", text.Line(each))
		case u.Scheme == "tls":
			secure = true
		case !fleet.Loopback(u.Host):
			return nil, fmt.Errorf("--cluster %s: beyond loopback the records' server has to speak TLS: tls://%s", each, u.Host)
		}
	}
	if !secure {
		return nil, nil
	}
	g.warnOfExpiry()
	return g.fleetDir().TLS()
}

func (g *Globals) warnOfExpiry() {
	if end, err := g.fleetDir().Expires(); err == nil && time.Until(end) < expiresSoon {
		g.logger().Warn("this machine's certificate expires soon: invite it again where the fleet began, and join again", "expires", end.UTC().Format(time.DateOnly))
	}
}

// listensAt is where a role listens that was told an address, or none: if the
// records' server is on another machine, where the way there begins.
func listensAt(ctx context.Context, told, urls string) (string, error) {
	first, _, _ := strings.Cut(urls, ",")
	u, err := url.Parse(first)
	if err != nil {
		return "", err
	}
	if fleet.Loopback(u.Host) {
		if told == "" {
			told = anyLoopback
		}
		return told, nil
	}
	if told != "" {
		if fleet.Loopback(told) {
			err = fmt.Errorf("%s: the records' server is at %s, whose other roles could not reach this one on loopback: want an address of this machine", told, u.Host)
		}
		return told, err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", u.Host) // sends nothing
	if err != nil {
		return "", err
	}
	defer c.Close()
	host, _, err := net.SplitHostPort(c.LocalAddr().String())
	return net.JoinHostPort(host, "0"), err
}

// Run lists workers.
func (c *fleetListCmd) Run(ctx context.Context, g *Globals) error {
	m, err := new(fleetFlags).join(ctx, g)
	if err != nil {
		return err
	}
	defer m.conn.Close()
	workers, err := m.workers(ctx)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(g.stdout, 0, 0, 2, ' ', 0)
	if !c.JSON {
		fmt.Fprintln(w, "WORKER\tADDRESS\tCORES\tMEMORY\tUSED\tINSTANCES\tSINCE")
	}
	for _, known := range workers {
		state := known
		if err := m.ask(ctx, http.MethodGet, known.Address, "/state", &state); err != nil {
			g.logger().Warn("a worker does not answer: "+text.Line(err.Error()), "worker", known.ID)
		}
		if err := c.print(g.stdout, w, state); err != nil {
			return err
		}
	}
	return w.Flush()
}

func (c *fleetListCmd) print(out, table io.Writer, s invokewire.WorkerState) error {
	if c.JSON {
		return json.NewEncoder(out).Encode(s)
	}
	_, err := fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%s\t%d\t%s\n", text.Line(s.ID), s.Address, s.Cores, text.Bytes(s.Memory), text.Bytes(s.Used), len(s.Instances), s.Started.UTC().Format(time.DateTime))
	return err
}

// Run writes an invitation.
func (c *fleetInviteCmd) Run(_ context.Context, g *Globals) error {
	i := invitation{}
	var err error
	if i.Cluster, err = (&fleetFlags{Cluster: c.Cluster}).clusterURL(g); err != nil {
		return err
	}
	if !strings.HasPrefix(i.Cluster, "tls://") {
		return fmt.Errorf("the records' server at %s is for this machine only: have it reached by others with thaw up --fleet HOST:PORT", i.Cluster)
	}
	if r, err := g.fleet(); err == nil {
		if u, err := url.Parse(r.Endpoint); err == nil && !fleet.Loopback(u.Host) {
			i.API = u.Host
		}
	}
	if i.Token, err = g.fleetToken(); err != nil {
		return err
	}
	ca, machine, err := g.fleetDir().Invite(c.Host...)
	if err != nil {
		return err
	}
	i.CA, i.Machine = string(ca), string(machine)
	data, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if c.File == "-" {
		_, err = g.stdout.Write(data)
		return err
	}
	f, err := os.OpenFile(c.File, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// Run keeps an invitation, once it has proved to be good.
func (c *fleetJoinCmd) Run(ctx context.Context, g *Globals) error {
	i, err := c.read()
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	was := g.membership()
	if err := g.mayJoin(was, i.Token); err != nil {
		return err
	}
	if err := i.try(ctx); err != nil {
		return fmt.Errorf("not joined: %w", err)
	}
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	if err := g.fleetDir().Join([]byte(i.CA), []byte(i.Machine)); err != nil {
		return err
	}
	if err := keep(g.fleetPath("token"), []byte(i.Token+"\n")); err != nil {
		return err
	}
	return writeJSON(g.fleetPath(joinedFile), membership{i.Cluster, i.API, cmp.Or(was.Worker, name+"-"+strings.ToLower(rand.Text()[:6]))})
}

// mayJoin refuses to make one machine a part of two fleets.
func (g *Globals) mayJoin(was membership, token string) error {
	old, err := os.ReadFile(g.fleetPath("token"))
	switch {
	case g.fleetDir().Began():
		return fmt.Errorf("the fleet of this --state %s began here: join with another --state", g.State)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil || string(bytes.TrimSpace(old)) == token:
		return err
	case was.Cluster != "":
		return fmt.Errorf("this machine has joined the fleet of %s: thaw fleet leave first", was.at())
	}
	return fmt.Errorf("this --state %s has a platform of its own, with functions and keys in %s: join with another --state", g.State, g.fleetPath())
}

// try tells whether the fleet can be reached from here, and knows the invitation.
func (i invitation) try(ctx context.Context) error {
	secure, err := fleet.Invited([]byte(i.CA), []byte(i.Machine))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinLook)
	defer cancel()
	conn, err := cluster.DialTLS(ctx, i.Cluster, i.Token, secure)
	if err == nil {
		conn.Close()
	}
	return err
}

// Run undoes join. What says that the machine has joined goes last: who is cut
// off does it again.
func (*fleetLeaveCmd) Run(_ context.Context, g *Globals) error {
	m := g.membership()
	if m.Cluster == "" {
		_, err := fmt.Fprintln(g.stdout, "this machine has joined no fleet")
		return err
	}
	roles, err := runningRoles(g.fleetPath(roleSockets))
	if err != nil {
		return err
	}
	if len(roles) > 0 {
		return fmt.Errorf("roles of the fleet run with this --state, %s: end them first", strings.Join(roles, " and "))
	}
	if _, err := os.Stat(g.fleetPath("cluster")); err == nil {
		return fmt.Errorf("%s has records of the fleet: move it away first", g.fleetPath("cluster"))
	}
	if err := g.fleetDir().Leave(); err != nil {
		return err
	}
	for _, name := range []string{"token", joinedFile} {
		if err := os.Remove(g.fleetPath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	_, err = fmt.Fprintln(g.stdout, "left the fleet of "+m.at())
	return err
}

// runningRoles names processes of roles, such as worker-1234.
func runningRoles(sockets string) (names []string, err error) {
	families, err := metrics.Roles(sockets).Gather()
	for _, f := range families {
		if f.GetName() != "thaw_role_up" {
			continue
		}
		for _, m := range f.Metric {
			names = append(names, m.Label[0].GetValue())
		}
	}
	return names, err
}

// read reads an invitation strictly.
func (c *fleetJoinCmd) read() (i invitation, err error) {
	in := io.Reader(os.Stdin)
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return i, err
		}
		defer f.Close()
		in = f
	}
	d := json.NewDecoder(io.LimitReader(in, maxInvitation))
	d.DisallowUnknownFields()
	if d.Decode(&i) != nil || len(i.Token) != 64 || !strings.HasPrefix(i.Cluster, "tls://") {
		return i, errors.New("it is no invitation as thaw fleet invite writes them") // not what it holds
	}
	return i, nil
}
