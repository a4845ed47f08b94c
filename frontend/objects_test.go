package frontend

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"thaw/functions"
	"thaw/lambdaapi"
)

// bucket is an S3 service: objects by key, and version.
type bucket map[string]func() (body io.Reader, size int64, err error)

func (b bucket) open(_ context.Context, name, key, version string) (io.ReadCloser, int64, error) {
	o := b[key+"@"+version]
	if name != "bucket" || o == nil {
		return nil, 0, &ObjectError{"NoSuchKey", "The specified key does not exist."}
	}
	body, size, err := o()
	return io.NopCloser(body), size, err
}

func (b bucket) put(key string, data []byte) {
	b[key] = func() (io.Reader, int64, error) { return bytes.NewReader(data), int64(len(data)), nil }
}

// withS3 gives the region an S3 service, and its client and scratch folder.
func (r *region) withS3(p Packages, b bucket) (client *lambda.Client, scratch string) {
	scratch = r.t.TempDir()
	c := newControl(control{
		store: r.store, secrets: newSecrets(testKeeper(r.t)), region: testRegion, packages: p, runtimes: []string{"provided.al2023"}, now: time.Now,
		objects: b.open, scratch: scratch,
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { serveTest(c, w, q) }))
	r.t.Cleanup(server.Close)
	r.url = server.URL
	return r.client(testAccount), scratch
}

func fromS3(key string) *lambda.CreateFunctionInput {
	return &lambda.CreateFunctionInput{FunctionName: aws.String("f"), Role: aws.String(testRole), Runtime: types.RuntimeProvidedal2023, Handler: aws.String("h"),
		Code: &types.FunctionCode{S3Bucket: aws.String("bucket"), S3Key: &key}}
}

// checkScratch finds what is left of scratch files: names, or files of this
// process without one.
func checkScratch(t *testing.T, dir string) {
	t.Helper()
	if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
		t.Errorf("left of scratch files: %v, %v", names, err)
	}
	open, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(open) == 0 {
		t.Fatalf("%d files are open, %v", len(open), err)
	}
	for _, fd := range open {
		if file, _ := os.Readlink(fd); strings.HasPrefix(file, dir) { // it may be closed by now
			t.Errorf("still open: %s", file)
		}
	}
}

// A package comes from S3 as it is there; what S3 answers instead, and what is too
// large, is told as AWS tells it. Nothing is left of one that has failed.
func TestPackageFromS3(t *testing.T) {
	r := newRegion(t)
	data := zipped(t, map[string]string{"bootstrap": "#!/bin/sh"})
	b := bucket{
		"long@":   func() (io.Reader, int64, error) { return strings.NewReader("not read"), mostFetched + 1, nil },
		"broken@": func() (io.Reader, int64, error) { return nil, 0, errors.New("connection lost") },
		"cut@": func() (io.Reader, int64, error) {
			return io.MultiReader(bytes.NewReader(data[:len(data)/2]), broken{}), int64(len(data)), nil
		},
	}
	b.put("f.zip@", data)
	b.put("f.zip@v2", data)
	b.put("bad@", data[:len(data)/2])
	b.put("bomb@", claims(t, mostUnzipped+1))
	client, scratch := r.withS3(r, b)
	const parameter = "InvalidParameterValueException"
	for key, want := range map[string][2]string{
		"none":   {parameter, "Error occurred while GetObject. S3 Error Code: NoSuchKey. S3 Error Message: The specified key does not exist."},
		"long":   {parameter, "Unzipped size must be smaller than 262144000 bytes"},
		"bomb":   {parameter, "Unzipped size must be smaller than 262144000 bytes"},
		"bad":    {parameter, "Could not unzip uploaded file."},
		"broken": {"ServiceException", ""},
		"cut":    {"ServiceException", ""},
	} {
		_, err := client.CreateFunction(t.Context(), fromS3(key))
		wantError(t, err, want[0], want[1])
		checkScratch(t, scratch)
	}
	both := fromS3("f.zip")
	both.Code.ZipFile = data
	_, err := client.CreateFunction(t.Context(), both)
	wantError(t, err, parameter, "Please do not provide other FunctionCode parameters when providing a ZipFile.")
	if len(r.zips) > 0 {
		t.Error("a package has been kept that no function has")
	}
	if got := must(client.CreateFunction(t.Context(), fromS3("f.zip"))); got.CodeSize != int64(len(data)) {
		t.Errorf("created: %+v", got)
	}
	checkScratch(t, scratch)
	stored := must(r.store.Get(t.Context(), functions.ID{Account: testAccount, Name: "f"}))
	if !bytes.Equal(r.zips[stored.Latest.Package.Zip], data) {
		t.Error("the package has not been kept")
	}
	r.build("f", functions.Result{Image: "i", Root: "r1"})
	must(client.UpdateFunctionCode(t.Context(), &lambda.UpdateFunctionCodeInput{FunctionName: aws.String("f"), S3Bucket: aws.String("bucket"), S3Key: aws.String("f.zip"), S3ObjectVersion: aws.String("v2")}))
}

// broken is what a connection is that is lost.
type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// claims makes a package of one file that claims to have so many bytes.
func claims(t *testing.T, size uint64) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	_, err := w.CreateRaw(&zip.FileHeader{Name: "bootstrap", Method: zip.Deflate, UncompressedSize64: size})
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// large is a package on disk: the larger ones of S3.
func large(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "large.zip"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w := zip.NewWriter(f)
	part, err := w.CreateHeader(&zip.FileHeader{Name: "bootstrap", Method: zip.Store})
	if err == nil {
		_, err = io.CopyN(part, zeros{}, size)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return f
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// heap is how much memory is in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// atEnd calls f at the end of what it reads.
type atEnd struct {
	io.Reader
	f func()
}

func (r atEnd) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err == io.EOF {
		r.f()
	}
	return n, err
}

// digesting is Packages that keeps nothing, and looks at what it could have.
type digesting struct {
	look func()
	sum  string
}

func (d *digesting) Put(_ context.Context, _ functions.ID, sha256Hex string, data *io.SectionReader) (string, error) {
	sum := sha256.New()
	if _, err := io.Copy(sum, data); err != nil {
		return "", err
	}
	if d.look(); hex.EncodeToString(sum.Sum(nil)) != sha256Hex {
		return "", errors.New("it is named by something else")
	}
	d.sum = sha256Hex
	return "key", nil
}

// A package of more bytes than requests may have comes from S3, and neither while
// it is read nor while it is kept is it in memory, or has a name on disk.
func TestLargePackageFromS3(t *testing.T) {
	r := newRegion(t)
	const size, most = mostZipped + 8<<20, 16 << 20
	file := large(t, size)
	info := must(file.Stat())
	var scratch string
	before, looks := int64(0), 0
	look := func() {
		looks++
		if grown := heap() - before; grown > most {
			t.Errorf("%d bytes are in memory for a package of %d", grown, info.Size())
		}
		if names, err := os.ReadDir(scratch); err != nil || len(names) > 0 {
			t.Errorf("what a kill would leave: %v, %v", names, err)
		}
	}
	p := &digesting{look: look}
	client, scratch := r.withS3(p, bucket{"f.zip@": func() (io.Reader, int64, error) {
		return atEnd{io.NewSectionReader(file, 0, info.Size()), look}, -1, nil
	}})
	before = heap()
	got := must(client.CreateFunction(t.Context(), fromS3("f.zip")))
	if got.CodeSize != info.Size() || looks != 2 || p.sum == "" {
		t.Errorf("created: %+v; looked %d times", got, looks)
	}
	checkScratch(t, scratch)
}

// What is in a request may have fewer bytes.
func TestLargePackageInRequest(t *testing.T) {
	c := &control{packages: &digesting{}, runtimes: []string{"provided.al2023"}}
	v := &functions.Version{Config: functions.Config{Runtime: "provided.al2023", Handler: "h"}}
	err := c.pack(t.Context(), functions.ID{Account: testAccount, Name: "f"}, v, source{zip: make([]byte, mostZipped+1)})
	var e *lambdaapi.Error
	if !errors.As(err, &e) || e.Kind != lambdaapi.RequestTooLargeException || e.Message != "Zipped size must be smaller than 52428800 bytes" {
		t.Errorf("got %v", err)
	}
}

// null is a file of which nothing is kept.
type null struct{ io.Writer }

func (null) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }

// An object of which the service does not say how long it is, and that has no end.
func TestEndlessPackageFromS3(t *testing.T) {
	c := &control{objects: bucket{"f.zip@": func() (io.Reader, int64, error) { return zeros{}, -1, nil }}.open}
	_, err := c.fetch(t.Context(), object{"bucket", "f.zip", ""}, null{io.Discard})
	if err == nil || !strings.Contains(err.Error(), "Unzipped size must be smaller than 262144000 bytes") {
		t.Errorf("got %v", err)
	}
}

// A scratch file has no name, and what a kill has left is removed by the next.
func TestScratch(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{scratchPrefix + "1", "something-else"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f := must(scratch(dir))
	defer f.Close()
	if names := must(os.ReadDir(dir)); len(names) != 1 || names[0].Name() != "something-else" {
		t.Errorf("left are %v", names)
	}
	if _, err := f.WriteAt([]byte("x"), 5); err != nil {
		t.Error(err)
	}
	if _, err := scratch(filepath.Join(dir, "none")); err == nil {
		t.Error("a folder that is not there")
	}
}

// What a package's directory takes of memory is bounded before it is read.
func TestCheckZipDirectory(t *testing.T) {
	files := func(n, extra int, content ...byte) []byte {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		for range n {
			f, err := w.CreateRaw(&zip.FileHeader{Name: "f", Extra: make([]byte, extra)})
			if err == nil {
				_, err = f.Write(content)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	nested := bytes.Repeat([]byte("PK\x01\x02"), 3*mostFiles) // of a package within the package
	for what, c := range map[string]struct {
		data []byte
		says string
	}{
		"as many as may be": {files(mostFiles, 0), ""},
		"packages within":   {files(1, 0, nested...), ""},
		"too many":          {files(mostFiles+1, 0), "at most 100000 files"},
		"far too many":      {files(2*mostFiles+1, 0), "at most 100000 files"},
		"large headers":     {files(mostDirectory/60000+1, 60000), "at most 100000 files"},
		"no zip":            {nested, "Could not unzip"},
	} {
		err := checkZip(io.NewSectionReader(bytes.NewReader(c.data), 0, int64(len(c.data))))
		if got := fmt.Sprint(err); (err == nil) != (c.says == "") || !strings.Contains(got, c.says) && err != nil {
			t.Errorf("%s: %s, want %q", what, got, c.says)
		}
	}
}
