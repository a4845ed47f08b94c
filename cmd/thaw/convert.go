package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"

	"thaw/chunk"
	"thaw/convert"
	"thaw/oci"
	"thaw/text"
)

// convertMemory is a soft limit in bytes of memory while converting. What must
// be kept is far below it for 200,000 entries (docs/claims.md); beyond, the
// collector runs more often and the limit gives way.
const convertMemory = 160 << 20

// What is converted with unless said otherwise; the flags' defaults.
const (
	defaultChunkSize = chunk.DefaultSize
	defaultFree      = 512 << 20
)

// sourceFlags are those of verbs that convert.
type sourceFlags struct {
	Platform  string `help:"Platform of a multi-platform image, such as linux/arm64 (by default this machine's)." placeholder:"P"`
	PlainHTTP bool   `help:"Talk to the registry without TLS."`
}

func (f sourceFlags) options() oci.Options {
	return oci.Options{Platform: f.Platform, PlainHTTP: f.PlainHTTP}
}

type convertCmd struct {
	Source string `arg:"" help:"docker://REF, oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG], or REF alone."`
	Name   string `help:"Name of the image (by default the source's: debian:12, layout:v1 of oci:./layout:v1)." placeholder:"N"`
	sourceFlags
	ChunkSize byteSize `help:"Size of a chunk: a power of two from 64KiB to 2MiB." default:"512KiB"`
	Free      byteSize `help:"Room for writes, at no cost until used." default:"512MiB"`
	Private   bool     `help:"Share no chunk with other tenants."`

	Prime       bool `help:"Put the chunks that are made into the zone too, so that no first start waits for the origin."`
	IgnoreSpace bool `help:"Try even if the origin's disk seems too small for what is new."`
	JSON        bool `name:"json" help:"End with one JSON object on one line."`
}

// Help teaches by example.
func (convertCmd) Help() string {
	return `The image is read once: layers are checked against their digests, flattened into one ext4
device, cut into chunks, sealed and stored. What is stored already is not stored again, and a
layer that was converted before is not read again.

  thaw convert debian:12
  thaw convert docker://registry.example:5000/team/app:v2 --name app --platform linux/arm64
  thaw convert oci:./layout:v1 --json
  thaw convert docker-archive:app.tar --private
  thaw --zone dns:cache.internal:7071 convert app:v2 --prime
  thaw --origin 's3://images?endpoint=http://127.0.0.1:7070&region=us-east-1' convert oci:./layout

Credentials come from the docker config (docker login).`
}

// Run converts.
func (c *convertCmd) Run(ctx context.Context, g *Globals) error {
	debug.SetMemoryLimit(convertMemory)
	if c.Prime && g.Zone == "" {
		return errors.New("--prime: which --zone?")
	}
	res, err := g.convert(ctx, convert.Options{
		Prime:  c.Prime,
		Source: c.Source, Name: c.Name, Image: c.options(),
		ChunkSize: int(c.ChunkSize), Free: int64(c.Free), Private: c.Private, IgnoreSpace: c.IgnoreSpace,
	})
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(g.stdout).Encode(res)
	}
	fmt.Fprintf(g.stdout, "%s  %s\n", res.Name, res.Image)
	fmt.Fprintf(g.stdout, "device  %s\n", text.Bytes(res.DeviceBytes))
	fmt.Fprintf(g.stdout, "chunks  %d: %d zero, %d new (%s), %d already stored (%s)\n", res.Chunks.Total, res.Chunks.Zero,
		res.Chunks.New, text.Bytes(res.Bytes.New), res.Chunks.Stored, text.Bytes(res.Bytes.Stored))
	fmt.Fprintf(g.stdout, "layers  %d, %d not read again\n", res.Layers.Total, res.Layers.Reused)
	if c.Prime {
		fmt.Fprintf(g.stdout, "zone    %d chunks put, %d not\n", res.Zone.Put, res.Zone.Failed)
	}
	_, err = fmt.Fprintf(g.stdout, "read    %s in %.2f s\n", text.Bytes(res.Bytes.Read), res.Seconds)
	return err
}

// convert converts a source into the origin, for the tenant, with progress.
func (g *Globals) convert(ctx context.Context, o convert.Options) (*convert.Result, error) {
	p := newProgress(g.stderr)
	defer p.close()
	o.Progress = p
	return g.convertQuietly(ctx, o)
}

// convertQuietly leaves progress to the caller.
func (g *Globals) convertQuietly(ctx context.Context, o convert.Options) (*convert.Result, error) {
	secret, err := g.secret()
	if err != nil {
		return nil, err
	}
	s, err := g.open(ctx, true)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	conv := convert.Converter{
		Origin: s.Origin, Tenant: g.Tenant, Keeper: s.key, KeyURL: s.key.URL(), Secret: secret,
		Warn: func(format string, args ...any) { g.logger().Warn(fmt.Sprintf(format, args...)) },
	}
	if o.Prime {
		near, err := g.zoneClient("")
		if err != nil {
			return nil, err
		}
		defer near.Close()
		conv.Zone = near.Put
	}
	res, err := conv.Convert(ctx, o)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", errConverting, err)
	}
	return res, err
}
