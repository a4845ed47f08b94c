//go:build cloud

package main

import (
	"context"
	"errors"
	"io"
	"os"

	"thaw/cluster"
)

// Run writes a backup. A file is there only if it is whole.
func (c *clusterBackupCmd) Run(ctx context.Context, g *Globals) error {
	m, err := (&fleetFlags{Cluster: c.Cluster}).join(ctx, g)
	if err != nil {
		return err
	}
	defer m.conn.Close()
	if c.File == "-" {
		return m.conn.Backup(ctx, g.stdout)
	}
	f, err := os.OpenFile(c.File, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // keys are in it
	if err != nil {
		return err
	}
	err = errors.Join(m.conn.Backup(ctx, f), f.Sync(), f.Close())
	if err != nil {
		err = errors.Join(err, os.Remove(c.File))
	}
	return err
}

// Run makes the folder of a server that has none.
func (c *clusterRestoreCmd) Run(ctx context.Context, g *Globals) error {
	var from io.Reader = os.Stdin
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return err
		}
		defer f.Close()
		from = f
	}
	if _, err := g.fleetToken(); err != nil { // also makes the folder
		return err
	}
	return cluster.Restore(ctx, g.fleetPath("cluster"), from)
}
