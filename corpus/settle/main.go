// Settle makes a freshly built image reproducible: it copies an OCI layout of uncompressed layers, and in the copy no time is later than
// SOURCE_DATE_EPOCH, neither of a file nor of the image. Builders stamp files with the clock; everything else they do is the same every time.
//
//	settle [-compression gzip|zstd|none] [-cache DIR] FROM TO
//
// FROM and TO are layout folders; TO must not exist and appears only on success. Layers that FROM holds compressed are accepted too, so
// that a layout can be packed again another way. DIR keeps compressed layers for other images that share them: those are hard links.
package main

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		fmt.Fprintln(os.Stderr, "settle:", err)
		os.Exit(1)
	}
}

func run(args []string, epoch string) error {
	flags := flag.NewFlagSet("settle", flag.ContinueOnError)
	compression := flags.String("compression", "gzip", "of the layers: gzip, zstd or none")
	cache := flags.String("cache", "", "folder of compressed layers; none by default")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 2 {
		return fmt.Errorf("want two layout folders, got %d arguments", flags.NArg())
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH must be seconds since 1970, is %q", epoch)
	}
	pack, ok := packings[*compression]
	if !ok {
		return fmt.Errorf("unknown compression %q: want gzip, zstd or none", *compression)
	}
	s := settler{latest: time.Unix(seconds, 0).UTC(), pack: pack, cache: *cache}
	return s.layout(flags.Arg(0), flags.Arg(1))
}
