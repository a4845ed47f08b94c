package lambdaapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// The files with which AWS tests its SDK for Go, version 2, are published
// in its module: a request and a response of every operation, and a response for
// every error. They are the judges of these tests.
const sdk = "github.com/aws/aws-sdk-go-v2/service/lambda"

// golden returns the folder of the SDK's files.
func golden(t testing.TB, name string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", sdk).Output()
	dir := filepath.Join(strings.TrimSpace(string(out)), name)
	if files, err2 := os.ReadDir(dir); err != nil || err2 != nil || len(files) < 80 {
		t.Fatalf("the module %s has no files in %s: %v %v", sdk, dir, err, err2)
	}
	return dir
}

// file reads one; the name's end tells what it is of.
func file(t testing.TB, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// split takes a file apart: first line, headers, body.
func split(t testing.TB, data []byte) (first string, h http.Header, body []byte) {
	t.Helper()
	first, rest, _ := strings.Cut(string(data), "\n")
	head, text, _ := strings.Cut(strings.TrimPrefix(rest, "\n"), "\n\n")
	if strings.HasPrefix(rest, "\n\n") { // no header at all
		head, text = "", strings.TrimPrefix(rest, "\n\n")
	}
	h = http.Header{}
	for line := range strings.Lines(head) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			t.Fatalf("not a header: %q in %q", line, data)
		}
		h.Add(name, value)
	}
	return first, h, []byte(text)
}

// Every request that AWS's SDK can send is routed, and read whole.
func TestGoldenRequests(t *testing.T) {
	dir := golden(t, "request_snapshot")
	for _, op := range slices.Sorted(maps.Keys(operations)) {
		if op == OpInvokeWithResponseStream {
			continue // has no golden request: see TestStream
		}
		t.Run(string(op), func(t *testing.T) {
			first, h, body := split(t, file(t, dir, string(op)+".request.snap"))
			method, target, _ := strings.Cut(first, " ")
			r := request(method, target, string(body))
			r.Header = h
			got, vars, err := Route(r)
			if err != nil || got != op {
				t.Fatalf("%s: routed to %q, %v", first, got, err)
			}
			if operations[op].in == nil {
				return
			}
			v := reflect.New(reflect.TypeOf(operations[op].in)).Elem()
			var c checker
			if err := decode(v, r, vars, body, &c); err != nil || c.count > 0 {
				t.Fatal(err, c.breaches)
			}
			wantAll(t, v, body)
			wantPlaced(t, v, first, h, body)
		})
	}
}

// wantAll wants the same members and values in a shape as in JSON.
func wantAll(t *testing.T, v reflect.Value, body []byte) {
	t.Helper()
	if hasPayload(v) || len(bytes.TrimSpace(body)) == 0 {
		return
	}
	want := tree(t, body)
	if v.Type() == reflect.TypeFor[InvokeAsyncResponse]() {
		delete(want.(map[string]any), "Status") // is the status itself, says the model
	}
	for _, d := range differences("", tree(t, marshal(v.Interface())), want) {
		t.Error(d)
	}
}

// differences says where two JSON trees differ.
func differences(path string, got, want any) []string {
	g, ok1 := got.(map[string]any)
	w, ok2 := want.(map[string]any)
	if !ok1 || !ok2 {
		if reflect.DeepEqual(got, want) {
			return nil
		}
		return []string{fmt.Sprintf("%s is %.300s, want %.300s", path, marshal(got), marshal(want))}
	}
	var all []string
	for name := range w {
		all = append(all, differences(path+"."+name, g[name], w[name])...)
	}
	for name := range g {
		if _, ok := w[name]; !ok {
			all = append(all, path+"."+name+" should not be there")
		}
	}
	return all
}

// wantPlaced wants every member outside of the JSON to be there, as the request has it.
func wantPlaced(t *testing.T, v reflect.Value, target string, h http.Header, body []byte) {
	t.Helper()
	for i := range v.NumField() {
		f := v.Type().Field(i)
		where, name, _ := strings.Cut(f.Tag.Get("in"), ":")
		got := text(reflect.Indirect(v.Field(i)), rule{})
		if list, ok := v.Field(i).Interface().([]string); ok {
			got = list[0]
		}
		switch where {
		case "path", "query":
			if got == "" || !strings.Contains(target, got) {
				t.Errorf("%s is %q, not in %s", f.Name, got, target)
			}
		case "header":
			if got != h.Get(name) {
				t.Errorf("%s is %q, want %q", f.Name, got, h.Get(name))
			}
		case "body":
			if !bytes.Equal(v.Field(i).Bytes(), body) {
				t.Errorf("%s is %q", f.Name, v.Field(i).Bytes())
			}
		}
	}
}

func hasPayload(v reflect.Value) bool {
	for i := range v.NumField() {
		if v.Type().Field(i).Tag.Get("in") == "body" {
			return true
		}
	}
	return false
}

// tree reads any JSON.
func tree(t *testing.T, data []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return v
}

// output reads a golden response into its shape, and wants all of it to fit.
func output(t *testing.T, op Op, data []byte) any {
	t.Helper()
	first, h, body := split(t, data)
	out := reflect.New(reflect.TypeOf(operations[op].out))
	v := out.Elem()
	if !hasPayload(v) {
		if err := decodeBody(v, body, &checker{}); err != nil {
			t.Fatal(err)
		}
		wantAll(t, v, body)
	}
	for i := range v.NumField() {
		where, name, _ := strings.Cut(v.Type().Field(i).Tag.Get("in"), ":")
		var err error
		switch where {
		case "header":
			err = setTexts(v.Field(i), h.Values(name))
		case "status":
			err = setTexts(v.Field(i), []string{first})
		case "body":
			v.Field(i).SetBytes(body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return out.Interface()
}

// response turns a golden response into what a server sends.
func response(t *testing.T, data []byte) *http.Response {
	t.Helper()
	first, h, body := split(t, data)
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 " + first + " x\r\n")
	h.Write(&b)
	b.WriteString("\r\n")
	b.Write(body)
	answer, err := http.ReadResponse(bufio.NewReader(&b), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body = io.NopCloser(bytes.NewReader(body))
	return answer
}
