//go:build cloud

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"runtime/debug"

	"thaw/fleet"
	"thaw/text"
	"thaw/zone/node"
)

// usualAddress is where a node listens unless it is told.
const usualAddress = "127.0.0.1:7070"

// What a node takes unless it is told; small for several on one machine.
const (
	nodeMemory, nodeFlash = 1 << 30, 50 << 30
	devMemory, devFlash   = 128 << 20, 1 << 30
	// heap is a soft limit in bytes of what Go holds: windows of HTTP/2 (64 MiB),
	// goroutines and heads of 2,048 connections, and room to collect. What is
	// known of each stripe comes to it: half of a 256th of its 128 KiB, and as
	// much again for shorter ones. Stripes themselves lie elsewhere.
	heap, heapShare = 256 << 20, 256
)

// Run serves until it is told to end.
func (c *zoneServeCmd) Run(ctx context.Context, g *Globals) (err error) {
	if c.Dev != 0 {
		return c.dev(ctx, g)
	}
	if c.Listen == "" {
		c.Listen = usualAddress
	}
	if c.TLSClientCA == "" && !fleet.Loopback(c.Listen) {
		return fmt.Errorf("--listen %s: a node that wants no certificates of clients listens on loopback only, such as 127.0.0.1:7070, or strangers fill and drain it; give --tls-cert, --tls-key and --tls-client-ca", c.Listen)
	}
	secure, err := c.tls()
	if err != nil {
		return err
	}
	if c.Flash == "" && c.FlashSize != 0 {
		return errors.New("--flash-size: of which --flash?")
	}
	memory, flash := int64(cmp.Or(c.Memory, nodeMemory)), int64(cmp.Or(c.FlashSize, nodeFlash))
	debug.SetMemoryLimit(heapLimit(memory, flash, c.Flash != ""))
	n, err := node.Open(node.Options{
		Memory: memory, Flash: c.Flash, FlashSize: flash,
		Warn: func(err error) { g.logger().Warn(text.Line(err.Error())) },
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	l, err := g.listen(ctx, c.Listen, secure)
	if err != nil {
		return err
	}
	return n.Serve(ctx, l)
}

// listen listens, over TLS unless secure is nil, and prints the address.
func (g *Globals) listen(ctx context.Context, address string, secure *tls.Config) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // near by, one path is enough, and the plain one has less to do
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintln(g.stdout, l.Addr()); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if secure != nil {
		l = tls.NewListener(l, secure)
	}
	return l, nil
}

// heapLimit is what Go's heap is kept below, for stripes of so many bytes.
func heapLimit(memory, flash int64, onFlash bool) int64 {
	if !onFlash {
		flash = 0
	}
	return heap + (memory+flash)/heapShare
}

// tls gives what the flags say, or nil for none.
func (c *serverTLS) tls() (*tls.Config, error) {
	if c.TLSCert == "" && c.TLSKey == "" && c.TLSClientCA == "" {
		return nil, nil
	}
	if c.TLSCert == "" || c.TLSKey == "" {
		return nil, errors.New("TLS takes both --tls-cert and --tls-key")
	}
	cert, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("--tls-cert, --tls-key: %w", err)
	}
	t := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}}
	if c.TLSClientCA != "" {
		if t.ClientCAs, err = authorities(c.TLSClientCA); err != nil {
			return nil, fmt.Errorf("--tls-client-ca: %w", err)
		}
		t.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return t, nil
}
