//go:build cloud

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"thaw/text"
	"thaw/top"
	"thaw/zone"
)

const (
	// nodeTimeout is how long a node may take to say how it is, or that it drains: it
	// is in memory, but a node that is fine is not to be called down for a machine
	// that is full of starts.
	nodeTimeout = 10 * time.Second
	// maxStatus bounds what a node may say in bytes: it says 8 KiB.
	maxStatus = 1 << 20
	// asking is how many nodes are asked at once.
	asking = 16
)

// zoneNode is one node, for --json.
type zoneNode struct {
	top.Node
	Weight int    `json:"weight"`
	Rack   string `json:"rack,omitempty"`
}

// nodeClient speaks to nodes.
type nodeClient struct {
	http.Client
	scheme string
}

// nodeClient gives one that speaks to the zone's nodes as the flags say, to
// them alone: it follows no redirects and uses no proxies.
func (g *Globals) nodeClient() (*nodeClient, error) {
	config, err := g.zoneTLSConfig()
	if err != nil {
		return nil, err
	}
	c := &nodeClient{scheme: "http://"}
	if config != nil {
		c.scheme = "https://"
	}
	c.Timeout, c.Transport = nodeTimeout, &http.Transport{TLSClientConfig: config}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c, nil
}

// ask sends a request to a node, and gives the body of a good answer.
func (c *nodeClient) ask(ctx context.Context, method, address, path string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.scheme+address+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxStatus))
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", address, res.Status)
	}
	return body, err
}

// Run lists the nodes.
func (c *zoneStatusCmd) Run(ctx context.Context, g *Globals) error {
	if g.Zone == "" {
		return errors.New("which zone? give --zone or THAW_ZONE, such as the first line of thaw zone --dev 5")
	}
	client, err := g.nodeClient()
	if err != nil {
		return err
	}
	all, err := client.askAll(ctx, g.Zone)
	if err != nil {
		return err
	}
	if err := c.print(g.stdout, all); err != nil {
		return err
	}
	down := 0
	for _, n := range all {
		if n.State == "down" {
			down++
		}
	}
	if down > 0 {
		return fmt.Errorf("%d of %d nodes down", down, len(all))
	}
	return nil
}

// askAll asks all nodes of a zone how they are.
func (c *nodeClient) askAll(ctx context.Context, list string) ([]zoneNode, error) {
	members, err := zone.ReadMembers(ctx, list)
	if err != nil {
		return nil, err
	}
	all := make([]zoneNode, 0, len(members.All()))
	for _, m := range members.All() {
		all = append(all, zoneNode{top.Node{Node: m.Addr}, m.Weight, m.Rack})
	}
	var work sync.WaitGroup
	room := make(chan struct{}, asking)
	for i := range all {
		room <- struct{}{}
		work.Go(func() {
			all[i].ask(ctx, c)
			<-room
		})
	}
	work.Wait()
	return all, nil
}

func (n *zoneNode) ask(ctx context.Context, c *nodeClient) {
	body, err := c.ask(ctx, http.MethodGet, n.Node.Node, "/status")
	if err == nil {
		err = json.Unmarshal(body, &n.Stats)
	}
	if err != nil || n.Stats == nil {
		n.State, n.Stats, n.Error = "down", nil, text.Line(fmt.Sprint(err))
		return
	}
	n.State = n.Stats.State
}

func (c *zoneStatusCmd) print(w io.Writer, all []zoneNode) error {
	if c.JSON {
		enc := json.NewEncoder(w)
		for _, n := range all {
			if err := enc.Encode(n); err != nil {
				return err
			}
		}
		return nil
	}
	nodes := make([]top.Node, len(all))
	for i := range all {
		nodes[i] = all[i].Node
	}
	return top.WriteNodes(w, nodes)
}

// Run tells the node.
func (c *zoneDrainCmd) Run(ctx context.Context, g *Globals) error {
	client, err := g.nodeClient()
	if err != nil {
		return err
	}
	if _, err := client.ask(ctx, http.MethodPost, c.Node, "/drain"); err != nil {
		return err
	}
	_, err = fmt.Fprintf(g.stdout, "%s takes in nothing more until it is started again\n", c.Node)
	return err
}
