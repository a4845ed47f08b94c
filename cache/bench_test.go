package cache

import (
	"context"
	"math/rand/v2"
	"os"
	"testing"

	"thaw/chunk"
)

// BenchmarkRead reads 4 KiB at random places of chunks that are at hand: what
// a page fault of a program costs here. "file" is the bare pread.
func BenchmarkRead(b *testing.B) {
	const n = 64
	for name, memory := range map[string]int64{"memory": n * chunk.DefaultSize, "folder": 1} {
		b.Run(name, func(b *testing.B) {
			o, folder := new(fakeOrigin), newFolder(b, 1<<30)
			chunks := o.put(b, n, chunk.DefaultSize)
			for _, c := range chunks {
				filled(b, folder, c)
			}
			c := newClient(b, ClientOptions{Folder: folder.dir, Memory: memory})
			for _, want := range chunks {
				read(b, c, want)
			}
			page := make([]byte, 4096)
			ctx := context.Background()
			b.ReportAllocs()
			for b.Loop() {
				v, err := c.Find(ctx, chunks[rand.IntN(n)].Name, chunk.DefaultSize)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := v.ReadAt(page, int64(rand.IntN(128))*4096); err != nil {
					b.Fatal(err)
				}
				_ = v.Close()
			}
		})
	}
	b.Run("file", func(b *testing.B) {
		folder, c := newFolder(b, 1<<30), sample(1, chunk.DefaultSize)
		filled(b, folder, c)
		file, err := os.Open(chunkPath(folder.dir, c.Name))
		if err != nil {
			b.Fatal(err)
		}
		defer file.Close()
		page := make([]byte, 4096)
		for b.Loop() {
			if _, err := file.ReadAt(page, int64(rand.IntN(128))*4096); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkFirstTouch finds chunks of 512 KiB that the client does not know:
// in the folder (open, read, hash), and in the origin, through the fetcher
// (get, hash, send; keep). "memory" is what a fetcher would take that had them
// in memory (send, and the copy that the fake makes). "hash" is SHA-256 alone.
func BenchmarkFirstTouch(b *testing.B) {
	chunks := new(fakeOrigin)
	list := chunks.put(b, 64, chunk.DefaultSize)
	b.Run("folder", func(b *testing.B) {
		folder := newFolder(b, 1<<30)
		for _, c := range list {
			filled(b, folder, c)
		}
		c := newClient(b, ClientOptions{Folder: folder.dir, Memory: 1, Files: 1})
		findAll(b, c, list)
	})
	b.Run("origin", func(b *testing.B) {
		folder := newFolder(b, 56*chunk.DefaultSize) // the next has always just gone
		f := serve(b, FetcherOptions{Folder: folder, Upstreams: upstream(chunks)})
		findAll(b, newClient(b, ClientOptions{Folder: b.TempDir(), Dial: dialer(f.socket), Memory: 1}), list)
	})
	b.Run("memory", func(b *testing.B) {
		up := upstream(chunks)
		up[0].Hashes = true
		f := serve(b, FetcherOptions{Folder: newFolder(b, 1), Upstreams: up})
		findAll(b, newClient(b, ClientOptions{Folder: b.TempDir(), Dial: dialer(f.socket), Memory: 1}), list)
	})
	b.Run("hash", func(b *testing.B) {
		b.SetBytes(chunk.DefaultSize)
		for b.Loop() {
			if err := chunk.Check(list[0].Data, list[0].Name); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func findAll(b *testing.B, c *Client, list []chunk.Sealed) {
	b.Helper()
	b.SetBytes(chunk.DefaultSize)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		want := list[i%len(list)]
		v, err := c.Find(context.Background(), want.Name, chunk.DefaultSize)
		if err != nil {
			b.Fatal(err)
		}
		_ = v.Close()
		c.records[want.Name].known = identity{} // a first touch, next time too
	}
}

// BenchmarkKeep stores chunks of 512 KiB in a folder that has to evict one in
// ten times.
func BenchmarkKeep(b *testing.B) {
	folder := newFolder(b, 100*chunk.DefaultSize)
	o := new(fakeOrigin)
	list := o.put(b, 200, chunk.DefaultSize)
	b.SetBytes(chunk.DefaultSize)
	for i := 0; b.Loop(); i++ {
		if err := folder.keep(list[i%len(list)].Name, list[i%len(list)].Data); err != nil {
			b.Fatal(err)
		}
	}
}
