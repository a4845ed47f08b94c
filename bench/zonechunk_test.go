package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/cache"
	"thaw/chunk"
	"thaw/device"
	"thaw/erasure"
	"thaw/internal/testoci"
	"thaw/manifest"
	"thaw/zone"
)

const (
	zoneChunks    = 300 // of 512 KiB: more than any buffer on the way holds
	zoneChunkSize = 512 << 10
)

// zoneImage is a zone of five processes that holds all chunks of a device.
type zoneImage struct {
	nodes    string // --zone
	pids     []int
	manifest *manifest.Manifest
	plain    []byte // of each chunk: its number is added to the first byte
}

func newZoneImage(b testing.TB, thaw string) *zoneImage {
	r := begin(b, thaw, "--state", b.TempDir(), "zone", "--dev", "5", "--memory", "256MiB", "--flash-size", "512MiB")
	b.Cleanup(func() { try(b, r.cmd.Process.Signal(syscall.SIGTERM), r.cmd.Wait()) })
	z := &zoneImage{
		nodes: strings.TrimSpace(r.line), pids: append(childrenOf(b, r.cmd.Process.Pid), r.cmd.Process.Pid),
		plain:    testoci.Noise(1, zoneChunkSize),
		manifest: &manifest.Manifest{Kind: manifest.Image, Tenant: "default", Layout: 1, Size: zoneChunks * zoneChunkSize, ChunkSize: zoneChunkSize},
	}
	client := z.client(b)
	for i := range zoneChunks {
		s := chunk.Seal(chunk.Salt{}, z.content(i))
		try(b, client.Put(b.Context(), s.Name, s.Data))
		z.manifest.Chunks = append(z.manifest.Chunks, manifest.Entry{Index: uint32(i), Size: zoneChunkSize, Name: s.Name, Key: s.Key})
	}
	return z
}

// childrenOf lists the children of a process.
func childrenOf(b testing.TB, pid int) (pids []int) {
	for child, parent := range parents(b) {
		if parent == pid {
			pids = append(pids, child)
		}
	}
	return pids
}

// content is what chunk i holds.
func (z *zoneImage) content(i int) []byte {
	c := bytes.Clone(z.plain)
	copy(c, fmt.Sprintf("chunk %d", i))
	return c
}

func (z *zoneImage) client(b testing.TB) *zone.Client {
	c, err := zone.NewClient(zone.Options{Zone: z.nodes, Deadline: time.Minute})
	try(b, err)
	b.Cleanup(func() { try(b, c.Close()) })
	return c
}

// agent gives the device as an agent has it: through a fetcher at a socket,
// with an empty folder.
func (z *zoneImage) agent(b testing.TB) *device.Device {
	dir, err := os.MkdirTemp("", "thaw-bench") // short, for the socket
	try(b, err)
	b.Cleanup(func() { try(b, os.RemoveAll(dir)) })
	folder, err := cache.OpenFolder(filepath.Join(dir, "cache"), 4<<30)
	try(b, err)
	client := z.client(b)
	fetcher := cache.NewFetcher(cache.FetcherOptions{Folder: folder, Upstreams: []cache.Upstream{{
		Tier: cache.Zone, Hashes: true, Source: func(string) (chunk.Source, error) { return client, nil },
	}}})
	socket := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", socket)
	try(b, err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- fetcher.Serve(ctx, l) }()
	b.Cleanup(func() {
		cancel()
		try(b, <-served)
	})
	finder, err := cache.NewClient(cache.ClientOptions{Folder: filepath.Join(dir, "cache"), Root: "r1", Dial: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}})
	try(b, err)
	b.Cleanup(func() { try(b, finder.Close()) })
	d, err := device.New(z.manifest, finder)
	try(b, err)
	return d
}

// parts are what has to be done for one chunk, each alone.
type parts struct {
	z                       *zoneImage
	members                 *zone.Members
	code                    *erasure.Code
	http                    http.Client
	fetch, join, hash, open milliseconds
	buf                     []byte
}

func newParts(b testing.TB, z *zoneImage) *parts {
	members, err := zone.ReadMembers(b.Context(), z.nodes)
	try(b, err)
	code, err := erasure.New(4, 5)
	try(b, err)
	return &parts{
		z: z, members: members, code: code, buf: make([]byte, zoneChunkSize),
		http: http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8, DisableCompression: true}},
	}
}

// chunk does them for chunk i.
func (p *parts) chunk(b testing.TB, i int) {
	e := p.z.manifest.Chunks[i]
	stripes := make([][]byte, 5)
	at := time.Now()
	lap := func(m *milliseconds) {
		now := time.Now()
		m.add(now.Sub(at))
		at = now
	}
	var all sync.WaitGroup
	errs := make([]error, 5)
	for n, m := range p.members.Place(e.Name, 5) {
		all.Go(func() { stripes[n], errs[n] = p.get(m.Addr, zone.StripeID{Name: e.Name, K: 4, N: 5, Index: uint8(n)}) })
	}
	all.Wait()
	lap(&p.fetch)
	try(b, errs...)
	stripes[i%4] = nil // as often as a straggler is one of the first four
	data, err := p.code.Join(zoneChunkSize, stripes)
	lap(&p.join)
	try(b, err)
	if sum := sha256.Sum256(data); chunk.Name(sum) != e.Name {
		b.Fatal("another chunk")
	}
	lap(&p.hash)
	chunk.NewStream(e.Key).XORKeyStreamAt(data, 0)
	lap(&p.open)
}

func (p *parts) get(addr string, id zone.StripeID) ([]byte, error) {
	resp, err := p.http.Get("http://" + addr + id.Path())
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body := make([]byte, resp.ContentLength)
	if _, err := io.ReadFull(resp.Body, body); err != nil || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %w", addr, resp.Status, err)
	}
	s, err := zone.ParseStripe(body)
	return s.Payload, err
}

// processorTime gives what this process and the nodes have used so far.
func (z *zoneImage) processorTime(b testing.TB) time.Duration {
	var own unix.Rusage
	try(b, unix.Getrusage(unix.RUSAGE_SELF, &own))
	sum := time.Duration(own.Utime.Nano() + own.Stime.Nano())
	for _, pid := range z.pids {
		sum += cpuOf(b, pid)
	}
	return sum
}

// cpuOf reads the processor time of a process (proc_pid_stat(5); ticks of 10 ms).
func cpuOf(b testing.TB, pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	try(b, err)
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var user, system int64
	_, err = fmt.Sscan(fields[11]+" "+fields[12], &user, &system)
	try(b, err)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// BenchmarkZoneChunk compares what an agent waits for a chunk that is in the
// zone alone with what its parts take one after the other.
func BenchmarkZoneChunk(b *testing.B) {
	asRoot(b)
	z := newZoneImage(b, newPlace(b).thaw)
	d, p := z.agent(b), newParts(b, z)
	buf := make([]byte, zoneChunkSize)
	var whole milliseconds
	for i := range zoneChunks {
		began := time.Now()
		try(b, d.ReadAt(b.Context(), buf, int64(i)*zoneChunkSize))
		whole.add(time.Since(began))
		if !bytes.Equal(buf, z.content(i)) {
			b.Fatalf("chunk %d is wrong", i)
		}
		p.chunk(b, i)
	}
	sum := p.fetch.median() + p.join.median() + p.hash.median() + p.open.median()
	say("a chunk of 512 KiB from the zone, as an agent sees it: %v; its parts: five GETs %v, rebuild %v, hash %v, decrypt %v; %.2f of their sum",
		whole, p.fetch, p.join, p.hash, p.open, whole.median()/sum)
	b.ReportMetric(whole.median()/sum, "of-parts")
}

// BenchmarkZoneVerify compares reading a whole image from the zone with the
// processor time that its parts take on all cores.
func BenchmarkZoneVerify(b *testing.B) {
	asRoot(b)
	p := newPlace(b)
	z := newZoneImage(b, p.thaw)
	b.Setenv("THAW_ZONE", z.nodes)
	timed(b, p.thaw, p.args("convert", "oci:"+corpus(b, "python"), "--name", "python", "--prime")...)
	var share Ratios
	for range 5 {
		parts := newParts(b, z)
		before := z.processorTime(b)
		for i := range zoneChunks {
			parts.chunk(b, i)
		}
		each := float64(z.processorTime(b)-before) / zoneChunks / zoneChunkSize // ns a byte
		o := timed(b, p.thaw, p.args("verify", "python", "--json")...)
		var report struct {
			Chunks struct{ Bytes, Zone, Origin int64 }
		}
		try(b, json.Unmarshal(o.stdout, &report))
		if report.Chunks.Origin > report.Chunks.Zone/100 {
			b.Errorf("not from the zone: %s", o.stdout)
		}
		ideal := each * float64(report.Chunks.Bytes) / float64(runtime.NumCPU())
		share = append(share, ideal/float64(o.wall))
		say("verify from the zone: %d MiB in %v, %v of processor time of its own", report.Chunks.Bytes>>20, o.wall, o.cpu)
	}
	say("verify from the zone: %v of what the parts would allow on all cores", share)
	b.ReportMetric(share[len(share)/2], "of-ideal")
}
