/* Test support only, no part of pixelrt: stands in for libnvinfer, libnvonnxparser and
 * libnvinfer_plugin of TensorRT 11 and forwards their C entry points to the TensorRT-RTX
 * libraries. Users install TensorRT and need none of this. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#define RTX_VERSION 10701 /* what TensorRT for RTX 1.7.1 calls its own version */

static void *rtx, *parser;

int shim_open(const char *rtx_path, const char *parser_path) {
    rtx = dlopen(rtx_path, RTLD_NOW | RTLD_GLOBAL);
    parser = rtx ? dlopen(parser_path, RTLD_NOW | RTLD_GLOBAL) : NULL;
    return rtx && parser ? 0 : 1;
}

const char *shim_error(void) { return dlerror(); }

static void *in(void *library, const char *name) {
    void *symbol = library ? dlsym(library, name) : NULL;
    if (!symbol) {
        fprintf(stderr, "test shim: %s was not found; was shim_open called?\n", name);
        abort();
    }
    return symbol;
}

void *createInferBuilder_INTERNAL(void *logger, int version) {
    (void)version;
    return ((void *(*)(void *, int))in(rtx, "createInferBuilder_INTERNAL"))(logger, RTX_VERSION);
}

void *createInferRuntime_INTERNAL(void *logger, int version) {
    (void)version;
    return ((void *(*)(void *, int))in(rtx, "createInferRuntime_INTERNAL"))(logger, RTX_VERSION);
}

void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) {
    (void)version;
    return ((void *(*)(void *, void *, int))in(rtx, "createInferRefitter_INTERNAL"))(
        engine, logger, RTX_VERSION);
}

void *getPluginRegistry(void) { return ((void *(*)(void))in(rtx, "getPluginRegistry"))(); }

void *getBuilderPluginRegistry(int capability) {
    return ((void *(*)(int))in(rtx, "getBuilderPluginRegistry"))(capability);
}

void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) {
    (void)version;
    return ((void *(*)(void *, void *, int))in(parser, "createNvOnnxParser_INTERNAL"))(
        network, logger, RTX_VERSION);
}

void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) {
    (void)version;
    return ((void *(*)(void *, void *, int))in(parser, "createNvOnnxParserRefitter_INTERNAL"))(
        refitter, logger, RTX_VERSION);
}

int getNvOnnxParserVersion(void) {
    return ((int (*)(void))in(parser, "getNvOnnxParserVersion"))();
}

int initLibNvInferPlugins(void *logger, const char *space) {
    (void)logger;
    (void)space;
    return 1;
}
