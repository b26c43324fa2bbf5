/* Roles: what the blocks of a model's parameters do (model/params.h). One list of identifiers and names, in parts: what
 * distinguishes a role is the part it stands in, and the enum, the names, the choices of options and the traits are
 * made from it.
 *
 *      ROLE_LIST                all
 *      |- DECAYING_ROLES        matrices and embeddings: optimizer.weight_decay acts on them
 *      |  |- HIDDEN_ROLES       hidden matrices: optimizer.matrices governs them
 *      |     |- HEAD_ROLES      split into heads: optimizer.muon.per_head may name them
 *      |- VECTOR_ROLES          norms and biases
 */
#pragma once

/* q, k: under latent attention of q^C and k^C, beside q_rope of q^R. */
#define HEAD_ROLES(X) X(Q, "q") X(Q_ROPE, "q_rope") X(K, "k") X(V, "v") X(O, "o")

/* Latent attention: q_down and kv_down make the latent vectors, k_rope the k^R that all heads share. */
#define HIDDEN_ROLES(X)                                                                                                \
    HEAD_ROLES(X)                                                                                                      \
    X(Q_DOWN, "q_down") X(KV_DOWN, "kv_down") X(K_ROPE, "k_rope") X(GATE, "gate") X(UP, "up") X(DOWN, "down")

/* embed: of tokens, also the head where that is tied. */
#define DECAYING_ROLES(X) X(EMBED, "embed") X(POSITION, "position") X(HEAD, "head") HIDDEN_ROLES(X)

#define VECTOR_ROLES(X) X(NORM, "norm") X(BIAS, "bias")

#define ROLE_LIST(X) DECAYING_ROLES(X) VECTOR_ROLES(X)

#define ROLE_ENUM(id, name) ROLE_##id,
typedef enum { ROLE_LIST(ROLE_ENUM) ROLE_COUNT } Role;
#undef ROLE_ENUM

/* As elements of a list of names. */
#define ROLE_NAME(id, name) name,
