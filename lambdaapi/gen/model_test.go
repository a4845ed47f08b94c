package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An overlay adds to objects and replaces all else.
func TestOverlay(t *testing.T) {
	m, err := load(files(t, small, `{
		"operations": {"GetThing": {"http": {"method": "GET", "requestUri": "/v2/thing"}, "output": {"shape": "Fresh"}}},
		"shapes": {
			"Part": {"members": {"More": {"shape": "Fresh"}}},
			"Kind": {"enum": ["only"]},
			"Fresh": {"type": "structure", "members": {}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if m.Operations["GetThing"].HTTP.RequestURI != "/v2/thing" || m.Operations["PutThing"] == nil {
		t.Error(m.Operations)
	}
	part := m.Shapes["Part"]
	if part.Type != "structure" || part.Members["Kind"].Shape != "Kind" || part.Members["More"].Shape != "Fresh" {
		t.Errorf("%+v", part)
	}
	if kind := m.Shapes["Kind"]; len(kind.Enum) != 1 || kind.Type != "string" {
		t.Errorf("%+v", kind)
	}
}

// What cannot be generated from is refused with the place that is wrong.
func TestRefused(t *testing.T) {
	for overlay, want := range map[string]string{
		`{`:             "overlay.json",
		`{"shapes": 1}`: "cannot unmarshal",
		`{"shapes": {"Part": {"members": {"X": {"shape": "Nowhere"}}}}}`:                   "shape Nowhere is missing",
		`{"shapes": {"Size": {"type": "complex"}}}`:                                        `unknown type "complex"`,
		`{"shapes": {"Thing": {"members": {"X": {"shape": "Size", "location": "moon"}}}}}`: `Thing.X: unknown location "moon"`,
		`{"shapes": {"Name": {"pattern": "(?=x)"}}}`:                                       "Name: ",
		`{"shapes": {"GoneException": {"error": {"httpStatusCode": 0}}}}`:                  "GoneException has no status",
	} {
		_, err := generate(files(t, small, overlay))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", overlay, err, want)
		}
	}
	if _, err := generate("/nowhere", "/nowhere"); err == nil {
		t.Error("a model that is not there")
	}
	t.Setenv("GOPROXY", "off")
	if _, err := find("example.invalid/none@v0.0.0", "x"); err == nil || !strings.Contains(err.Error(), "give the model by -model") {
		t.Error(err)
	}
}

// run writes every file.
func TestRun(t *testing.T) {
	model, overlay := files(t, small, "{}")
	dir := t.TempDir()
	if err := run(model, overlay, dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"shapes_gen.go", "rules_gen.go", "routes_gen.go", "errors_gen.go", "operations_gen_test.go"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() < 100 {
			t.Error(name, err)
		}
	}
	if err := run(model, overlay, filepath.Join(dir, "none")); err == nil {
		t.Error("a folder that is not there")
	}
}

// Layers and their like are not answered.
func TestAnswered(t *testing.T) {
	for name, want := range map[string]bool{
		"Invoke": true, "GetFunctionRecursionConfig": true, "PutFunctionConcurrency": true, "GetPolicy": true,
		"PublishLayerVersion": false, "CreateCapacityProvider": false, "StopDurableExecution": false, "PutResourcePolicy": false, "GetFunctionScalingConfig": false,
	} {
		if answered(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

// What is left out is known as refused, and no more of it than where it is found.
func TestNotAnswered(t *testing.T) {
	m, err := load(files(t, small, "{}"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.prune(answered); err != nil || len(m.Operations) != 2 || len(m.refused) != 1 || m.Shapes["LayerOnly"] != nil {
		t.Fatalf("%d answered, %d refused, %v", len(m.Operations), len(m.refused), err)
	}
	if got, want := m.refused["DeleteLayer"].place(), `method: "DELETE", path: "/v1/layers", query: ""`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Two runs give the same bytes, or the generated files would change for no reason.
func TestStable(t *testing.T) {
	first, second := written(t, "{}"), written(t, "{}")
	for name, text := range first {
		if second[name] != text {
			t.Errorf("%s differs from run to run", name)
		}
	}
}
