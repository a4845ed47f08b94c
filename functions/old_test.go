package functions

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"testing"
)

// A record with every field, as an earlier build wrote it, loses nothing when it
// is read and written. Fields may be added, and nothing else: the sample is never
// written anew.
func TestRecordOfOld(t *testing.T) {
	old, err := os.ReadFile("testdata/function.json")
	if err != nil {
		t.Fatal(err)
	}
	s, m := newMemory()
	m.spoil(functionKey(testID), string(old))
	f, err := s.Get(t.Context(), testID)
	if err != nil {
		t.Fatal(err)
	}
	now, err := encode(f)
	if err != nil {
		t.Fatal(err)
	}
	var was, is any
	if err := json.Unmarshal(old, &was); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(now, &is); err != nil {
		t.Fatal(err)
	}
	for _, field := range lost("", was, is) {
		t.Errorf("%s is lost", field)
	}
	if key := functionKey(testID); key != "f/000000000000/f" {
		t.Errorf("its key is %s", key)
	}
}

// lost lists what is not the same in now as in old JSON, or not there.
func lost(path string, old, now any) (fields []string) {
	was, isObject := old.(map[string]any)
	is, _ := now.(map[string]any)
	if !isObject {
		if !reflect.DeepEqual(old, now) {
			fields = append(fields, fmt.Sprintf("%s: %v (now %v)", path, old, now))
		}
		return fields
	}
	for name, value := range was {
		fields = append(fields, lost(path+"."+name, value, is[name])...)
	}
	return fields
}
