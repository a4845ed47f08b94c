//go:build cloud

package main

import (
	"bytes"
	"context"
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

	"thaw/fleet"
	"thaw/invokewire"
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
// secrets, which leave the file once the machine has joined.
type invitation struct {
	Cluster string `json:"cluster"`       // URL of the records' server
	API     string `json:"api,omitempty"` // host:port of the Lambda API, if other machines reach it
	Token   string `json:"token,omitempty"`
	CA      string `json:"ca,omitempty"`      // PEM
	Machine string `json:"machine,omitempty"` // PEM of a certificate and its key
}

// Format hides the secrets from every verb.
func (i invitation) Format(f fmt.State, _ rune) { fmt.Fprint(f, "invitation to "+i.Cluster) }

// fleetDir has the machine's certificates.
func (g *Globals) fleetDir() fleet.Dir { return fleet.Dir(g.fleetPath()) }

// invited is what this machine was invited with, without the secrets, or nothing.
func (g *Globals) invited() (i invitation) {
	_ = readJSON(g.fleetPath("joined.json"), &i) // it may have founded its fleet
	return i
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

// Run keeps an invitation.
func (c *fleetJoinCmd) Run(_ context.Context, g *Globals) error {
	i, err := c.read()
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	old, err := os.ReadFile(g.fleetPath("token"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case string(bytes.TrimSpace(old)) != i.Token:
		return fmt.Errorf("%s is of another fleet: remove it if this machine is to leave that", g.fleetPath("token"))
	}
	if err := g.fleetDir().Join([]byte(i.CA), []byte(i.Machine)); err != nil {
		return err
	}
	if err := keep(g.fleetPath("token"), []byte(i.Token+"\n")); err != nil {
		return err
	}
	return writeJSON(g.fleetPath("joined.json"), invitation{Cluster: i.Cluster, API: i.API})
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
