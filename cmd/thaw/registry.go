//go:build cloud

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"thaw/builder"
)

// maxPassword bounds a password in bytes: tokens of clouds take some thousands.
const maxPassword = 16 << 10

// withLogins opens the platform's credentials for registries, for f.
func (g *Globals) withLogins(ctx context.Context, f func(*builder.Logins) error) error {
	m, err := new(fleetFlags).join(ctx, g)
	if err != nil {
		return err
	}
	defer m.conn.Close()
	records, err := m.conn.Records(ctx, loginRecords)
	if err != nil {
		return err
	}
	held := newTenantKeys(g)
	defer held.Close()
	return f(builder.NewLogins(records, held.keeper))
}

// Run keeps credentials.
func (c *registryLoginCmd) Run(ctx context.Context, g *Globals) error {
	if term.IsTerminal(int(os.Stdin.Fd())) {
		return errors.New("registry login: the password comes from standard input: pipe it in")
	}
	raw, err := io.ReadAll(io.LimitReader(os.Stdin, maxPassword+1))
	if err != nil {
		return err
	}
	password := strings.TrimRight(string(raw), "\r\n")
	if password == "" || len(raw) > maxPassword {
		return fmt.Errorf("registry login: want a password of 1 to %d bytes on standard input", maxPassword)
	}
	return g.withLogins(ctx, func(l *builder.Logins) error {
		return l.Set(ctx, g.account(c.Account), c.Registry, c.Username, password)
	})
}

// Run lists registries.
func (c *registryListCmd) Run(ctx context.Context, g *Globals) error {
	return g.withLogins(ctx, func(l *builder.Logins) error {
		all, err := l.List(ctx, g.account(c.Account))
		for _, name := range all {
			fmt.Fprintln(g.stdout, name)
		}
		return err
	})
}

// Run forgets credentials.
func (c *registryLogoutCmd) Run(ctx context.Context, g *Globals) error {
	return g.withLogins(ctx, func(l *builder.Logins) error { return l.Remove(ctx, g.account(c.Account), c.Registry) })
}
